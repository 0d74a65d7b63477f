-- Purpose: an agent is forgotten: its id is free, its tokens are worth nothing.
-- Locks:   the agent.
-- Index:   agents_pkey.
-- $1 text: agent_id.
delete from fleet.agents where agent_id = $1 returning session_id
