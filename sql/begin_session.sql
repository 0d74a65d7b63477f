-- Purpose: begins a session.
-- Locks:   the inserted row; waits for another session of the same subject that is being begun.
-- Index:   sessions_live.
-- $1 text: kind; $2 text: agent_id or replica_id; $3 double precision: ttl in seconds.
insert into fleet.sessions (kind, subject, ttl) values ($1, $2, make_interval(secs => $3)) returning session_id
