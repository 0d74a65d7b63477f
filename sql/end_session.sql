-- Purpose: ends one session: deregistration, or a replica that stops.
-- Locks:   that session.
-- Index:   sessions_pkey.
-- $1 uuid: session; $2 text: reason.
update fleet.sessions set ended_at = now(), end_reason = $2 where session_id = $1 and ended_at is null
