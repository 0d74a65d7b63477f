-- Purpose: a CLI on a host has done a task: the next time that it has to be parked is a first time again. One that is
--          parked now stays so: what succeeded had begun before.
-- Locks:   the host agent, if there is something to forget.
-- Index:   host_agents_pkey.
-- $1 bigint: host agent.
update fleet.host_agents
   set parked_until = null, parked_reason = null, park_count = 0
 where host_agent_id = $1 and park_count > 0 and (parked_until is null or parked_until <= now())
