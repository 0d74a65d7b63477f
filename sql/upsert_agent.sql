-- Purpose: an agent as it has just registered, with a new token. The token before may register until the new one is used.
-- Locks:   the agent.
-- Index:   agents_pkey.
-- $1 text: agent_id; $2 text: type; $3 text: hostname; $4 text[]: capabilities; $5 integer: max_concurrency;
-- $6 jsonb: metadata; $7 uuid: session; $8 bytea: digest of the new token.
insert into fleet.agents as a (agent_id, agent_type, hostname, capabilities, max_concurrency, metadata, session_id,
                               token_digest)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (agent_id) do update
   set agent_type = excluded.agent_type, hostname = excluded.hostname, capabilities = excluded.capabilities,
       max_concurrency = excluded.max_concurrency, metadata = excluded.metadata, session_id = excluded.session_id,
       -- a token that was never used gives way to the one that was
       previous_token_digest = case when a.token_used then a.token_digest else a.previous_token_digest end,
       token_digest = excluded.token_digest, token_used = false, registered_at = now()
