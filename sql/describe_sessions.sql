-- Purpose: what agents registered in these sessions, as far as they live. It never changes: registering anew begins another
--          session.
-- Locks:   none.
-- Index:   sessions_pkey; agents_pkey.
-- $1 uuid[]: sessions.
select s.session_id, a.agent_id, a.capabilities, a.max_concurrency
  from fleet.sessions s
  join fleet.agents a on a.agent_id = s.subject and a.session_id = s.session_id
 where s.session_id = any ($1::uuid[]) and s.kind = 'agent' and s.ended_at is null
