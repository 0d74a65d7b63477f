-- Purpose: the claim by dequeue, first statement: locks the sessions of the agents that want work, so that no other
--          replica counts or claims for them meanwhile. Only live sessions of agents that are not draining.
-- Locks:   sessions FOR NO KEY UPDATE SKIP LOCKED, by id.
-- Index:   sessions_pkey. The index of live sessions is hidden from it: planned while there were few, it would read all of
--          them for ever, and what died of them while a snapshot is held.
-- $1 uuid[]: sessions that wait. Answers with when each ends without another sign of life, and with one from now.
select s.session_id, s.claimer, s.last_heartbeat_at < now() - s.ttl / 4 as is_quiet,
       s.last_heartbeat_at + s.ttl as expires_at, now() + s.ttl as renewed_until
  from fleet.sessions s
  join fleet.agents a on a.agent_id = s.subject and a.session_id = s.session_id
 where s.session_id = any ($1::uuid[]) and s.kind = 'agent' and coalesce(s.ended_at, 'infinity') = 'infinity'
   and a.drained_at is null
 order by s.session_id
   for no key update of s skip locked
