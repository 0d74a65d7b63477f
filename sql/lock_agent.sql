-- Purpose: what is known of an agent that registers.
-- Locks:   the agent.
-- Index:   agents_pkey.
-- $1 text: agent_id.
select session_id, token_digest, token_used, previous_token_digest from fleet.agents where agent_id = $1 for update
