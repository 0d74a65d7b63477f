-- Purpose: whether a name is an agent's, a host's or a host agent's, and whether it has what a task requires.
-- Locks:   none.
-- Index:   agents_pkey; host_agents_host_id_agent_type_key.
-- $1 text: agent_id, host_id or host_id/agent_type; $2 uuid: task.
select k.kind, bool_or(s.capabilities <@ k.capabilities) as capable
  from (select 'agent' as kind, a.capabilities from fleet.agents a where a.agent_id = $1
        union all
        select 'host', ha.capabilities from fleet.host_agents ha
         where ha.host_id = $1 or ha.host_id || '/' || ha.agent_type = $1) k
  join fleet.tasks t on t.task_id = $2
  join fleet.task_specs s on s.task_id = t.task_id and s.version = t.spec_version
 group by k.kind
