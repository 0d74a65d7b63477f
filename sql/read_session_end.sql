-- Purpose: why a session has ended; null while it lives.
-- Locks:   none.
-- Index:   sessions_pkey.
-- $1 uuid: session.
select end_reason from fleet.sessions where session_id = $1
