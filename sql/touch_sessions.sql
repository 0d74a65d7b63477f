-- Purpose: signs of life, in a batch. Only a live session can be renewed. One that somebody else has locked at this moment is
--          not waited for: the others would stay locked meanwhile, and agents whose sessions are locked get no work.
-- Locks:   sessions by id, FOR NO KEY UPDATE SKIP LOCKED.
-- Index:   sessions_pkey.
-- $1 uuid[]: sessions.
with own as materialized (
  select session_id from fleet.sessions
   where session_id = any ($1::uuid[]) and ended_at is null
   order by session_id
     for no key update skip locked
),
renewed as (
  update fleet.sessions s
     set last_heartbeat_at = now()
    from own
   where s.session_id = own.session_id
  returning s.session_id
)
select s.session_id, r.session_id is not null as renewed
  from fleet.sessions s
  left join renewed r on r.session_id = s.session_id
 where s.session_id = any ($1::uuid[]) and s.ended_at is null
