-- Purpose: the CLIs of a host as this replica's configuration has them.
-- Locks:   the host agents, by type.
-- Index:   host_agents_host_id_agent_type_key.
-- $1 text: host_id; $2 jsonb: array of {agent_type, capabilities, max_concurrency}.
insert into fleet.host_agents as ha (host_id, agent_type, capabilities, max_concurrency)
select $1, i.agent_type, i.capabilities, i.max_concurrency
  from jsonb_to_recordset($2::jsonb) as i(agent_type text, capabilities text[], max_concurrency integer)
 order by i.agent_type
on conflict (host_id, agent_type) do update
   set capabilities = excluded.capabilities, max_concurrency = excluded.max_concurrency
returning host_agent_id, agent_type
