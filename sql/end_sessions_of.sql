-- Purpose: ends the live session of an agent or replica, if there is one.
-- Locks:   that session.
-- Index:   sessions_live.
-- $1 text: kind; $2 text: agent_id or replica_id; $3 text: reason.
update fleet.sessions
   set ended_at = now(), end_reason = $3
 where kind = $1 and subject = $2 and ended_at is null
returning session_id
