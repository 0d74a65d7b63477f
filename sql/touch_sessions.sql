-- Purpose: heartbeats, in a batch. Only a live session can be renewed.
-- Locks:   sessions by id.
-- Index:   sessions_pkey.
-- $1 uuid[]: sessions.
with own as materialized (
  select session_id from fleet.sessions
   where session_id = any ($1::uuid[]) and ended_at is null
   order by session_id
     for no key update
)
update fleet.sessions s
   set last_heartbeat_at = now()
  from own
 where s.session_id = own.session_id
returning s.session_id
