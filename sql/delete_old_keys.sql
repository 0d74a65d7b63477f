-- Purpose: forgets idempotency keys that were used long ago.
-- Locks:   those rows, SKIP LOCKED.
-- Index:   idempotency_keys_created.
-- $1 double precision: older than so many seconds; $2 integer: at most this many.
with gone as (
  delete from fleet.idempotency_keys
   where idempotency_key = any (array(
     select idempotency_key from fleet.idempotency_keys
      where created_at < now() - make_interval(secs => $1)
      order by created_at
      limit $2::integer
        for update skip locked))
  returning 1)
select count(*) as deleted from gone
