-- Purpose: waits until no claim for an agent is under way, and lets none begin until the transaction ends.
-- Locks:   its live session, FOR NO KEY UPDATE.
-- Index:   sessions_live.
-- $1 text: agent_id.
select session_id from fleet.sessions where kind = 'agent' and subject = $1 and ended_at is null for no key update
