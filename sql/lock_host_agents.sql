-- Purpose: waits until no claim for a host is under way, and lets none begin until the transaction ends.
-- Locks:   its host agents, by id, FOR NO KEY UPDATE.
-- Index:   host_agents_host_id_agent_type_key.
-- $1 text: host_id.
select host_agent_id from fleet.host_agents where host_id = $1 order by host_agent_id for no key update
