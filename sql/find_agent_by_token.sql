-- Purpose: whose token this is, and whether its session lives.
-- Locks:   none.
-- Index:   agents_token; agents_previous_token; sessions_pkey.
-- $1 bytea: SHA-256 of the token.
select a.agent_id, a.session_id, s.ended_at is null as live, a.token_digest = $1 as current, a.token_used
  from fleet.agents a
  join fleet.sessions s on s.session_id = a.session_id
 where a.token_digest = $1 or a.previous_token_digest = $1
