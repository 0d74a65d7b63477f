-- Purpose: CLIs that a host no longer has, once nothing runs on them.
-- Locks:   those host agents.
-- Index:   host_agents_host_id_agent_type_key; tasks_held.
-- $1 text: host_id; $2 text[]: the types it has.
delete from fleet.host_agents ha
 where ha.host_id = $1 and ha.agent_type <> all ($2::text[])
   and not exists (select 1 from fleet.tasks t where t.host_agent_id = ha.host_agent_id and t.holder is not null)
