-- Purpose: who callers are now that a replica remembers: by their tokens, or by their names where somebody may act for
--          any agent.
-- Locks:   none.
-- Index:   agents_token; agents_previous_token; agents_pkey; sessions_pkey.
-- $1 bytea[]: SHA-256 of tokens; $2 text[]: agent ids.
select d.digest, null::text as named, a.agent_id, a.session_id, s.ended_at is null as live,
       a.token_digest = d.digest as current
  from unnest($1::bytea[]) as d(digest)
  join fleet.agents a on a.token_digest = d.digest or a.previous_token_digest = d.digest
  join fleet.sessions s on s.session_id = a.session_id
union all
select null, n.agent_id, a.agent_id, a.session_id, s.ended_at is null, true
  from unnest($2::text[]) as n(agent_id)
  join fleet.agents a on a.agent_id = n.agent_id
  join fleet.sessions s on s.session_id = a.session_id
