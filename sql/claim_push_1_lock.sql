-- Purpose: the claim by dispatch, first statement: locks the host agents that this replica can reach, so that no other
--          replica counts or claims their slots meanwhile. Not those that are parked or draining, and none unless this
--          replica's session lives.
-- Locks:   host_agents FOR NO KEY UPDATE SKIP LOCKED, by id.
-- Index:   host_agents_pkey; sessions_pkey.
-- $1 bigint[]: host agents; $2 uuid: this replica's session.
select ha.host_agent_id, ha.host_id, ha.agent_type, ha.capabilities, ha.max_concurrency
  from fleet.host_agents ha
  join fleet.hosts h on h.host_id = ha.host_id
 where ha.host_agent_id = any ($1::bigint[])
   and h.drained_at is null
   and (ha.parked_until is null or ha.parked_until <= now())
   and exists (select 1 from fleet.sessions s where s.session_id = $2 and s.ended_at is null)
 order by ha.host_agent_id
   for no key update of ha skip locked
