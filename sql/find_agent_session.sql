-- Purpose: the newest session of an agent, for callers that may act for any agent.
-- Locks:   none.
-- Index:   agents_pkey; sessions_pkey.
-- $1 text: agent_id.
select a.agent_id, a.session_id, s.ended_at is null as live
  from fleet.agents a
  join fleet.sessions s on s.session_id = a.session_id
 where a.agent_id = $1
