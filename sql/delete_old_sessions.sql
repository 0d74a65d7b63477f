-- Purpose: forgets sessions that ended long ago and are nobody's newest, with what they listed, and the replicas whose newest
--          they are: those will not come back under that name, or will anew.
-- Locks:   those rows, sessions first, SKIP LOCKED.
-- Index:   sessions_ended; tasks_held; replica_hosts_pkey.
-- $1 double precision: older than so many seconds; $2 integer: at most this many.
with old as materialized (
  select s.session_id
    from fleet.sessions s
   where s.ended_at is not null and s.ended_at < now() - make_interval(secs => $1)
     and not exists (select 1 from fleet.agents a where a.session_id = s.session_id)
     and not exists (select 1 from fleet.tasks t where t.holder = s.session_id)
   order by s.session_id
   limit $2::integer
     for update of s skip locked
),
listed as (delete from fleet.replica_hosts h using old o where h.session_id = o.session_id),
replica as (delete from fleet.replicas r using old o where r.session_id = o.session_id),
gone as (delete from fleet.sessions s using old o where s.session_id = o.session_id returning 1)
select count(*) as deleted from gone
