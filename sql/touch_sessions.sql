-- Purpose: signs of life, in a batch. Only a live session can be renewed. One that somebody else has locked at this moment is
--          not waited for: the others would stay locked meanwhile, and agents whose sessions are locked get no work.
-- Locks:   sessions by id, FOR NO KEY UPDATE SKIP LOCKED.
-- Index:   sessions_pkey.
-- $1 uuid[]: sessions, each once; $2 double precision[]: how many seconds ago each was heard of.
with heard as materialized (
  select * from unnest($1::uuid[], $2::double precision[]) as h(session_id, age)
),
own as materialized (
  select session_id from fleet.sessions
   where session_id = any ($1::uuid[]) and ended_at is null
   order by session_id
     for no key update skip locked
),
renewed as (
  update fleet.sessions s
     set last_heartbeat_at = greatest(s.last_heartbeat_at, now() - make_interval(secs => h.age))
    from own
    join heard h on h.session_id = own.session_id
   where s.session_id = own.session_id
  returning s.session_id
)
select s.session_id, r.session_id is not null as renewed
  from fleet.sessions s
  left join renewed r on r.session_id = s.session_id
 where s.session_id = any ($1::uuid[]) and s.ended_at is null
