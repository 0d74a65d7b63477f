-- Purpose: an operator says that all CLIs of a host can work again.
-- Locks:   those host agents, by id.
-- Index:   host_agents_host_id_agent_type_key.
-- $1 text: host_id.
with parked as materialized (
  select host_agent_id from fleet.host_agents where host_id = $1 and park_count > 0 order by host_agent_id for update
)
update fleet.host_agents ha
   set parked_until = null, parked_reason = null, park_count = 0
  from parked where ha.host_agent_id = parked.host_agent_id
