-- Purpose: the new token has been used: the one before is worth nothing any more.
-- Locks:   the agent.
-- Index:   agents_token.
-- $1 bytea: SHA-256 of the token.
update fleet.agents set token_used = true, previous_token_digest = null where token_digest = $1 and not token_used
