-- Purpose: why sessions could not be locked for a claim: ended, draining, or just locked by somebody.
-- Locks:   none.
-- Index:   sessions_pkey.
-- $1 uuid[]: sessions.
select s.session_id, s.ended_at is not null as ended,
       coalesce(a.drained_at is not null or a.session_id <> s.session_id, true) as barred
  from fleet.sessions s
  left join fleet.agents a on a.agent_id = s.subject
 where s.session_id = any ($1::uuid[])
