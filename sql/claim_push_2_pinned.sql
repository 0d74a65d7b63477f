-- Purpose: the claim by dispatch, second statement: what is pinned to the locked hosts, oldest first. servable tells
--          whether any CLI of the named host has the task's requirements; if none has, the pin was forced.
-- Locks:   none; claim_push_3_take locks.
-- Index:   tasks_held; task_specs_pkey.
-- $1 text[]: host_id and host_id/agent_type of the locked host agents; $2 bigint: how many.
select t.task_id, t.pinned_to, s.capabilities as required,
       exists (select 1 from fleet.host_agents ha
                where ha.host_id = split_part(t.pinned_to, '/', 1) and s.capabilities <@ ha.capabilities) as servable
  from fleet.tasks t
  join fleet.task_specs s on s.task_id = t.task_id and s.version = t.spec_version
 where t.host_agent_id is null and t.holder is null and t.pinned_to = any ($1::text[])
   and t.status = 'assigned' and t.execution_mode = 'ssh_cli'
 order by t.seq
 limit $2::bigint
