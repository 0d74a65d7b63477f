-- Purpose: waits until the transactions are over that create these tasks, which another replica has told of while it commits.
-- Locks:   the advisory locks that sql/insert_tasks.sql holds, shared, one after the other; this holds nothing else.
-- Index:   none.
-- $1 bigint[]: the seq of each.
select count(pg_advisory_xact_lock_shared(hashtextextended('fleet.creation', seq))::text) as over
  from unnest($1::bigint[]) as u(seq)
