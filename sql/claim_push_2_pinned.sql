-- Purpose: the claim by dispatch, second statement: what is pinned to the locked hosts, oldest first. servable tells
--          whether any CLI of the named host has the task's requirements; if none has, the pin was forced.
-- Locks:   none; claim_push_3_take locks.
-- Index:   tasks_held; task_specs_pkey.
-- $1 text[]: host_id and host_id/agent_type of the locked host agents; $2 bigint: how many
-- of each: the pins of a host that is full must not hide another's.
select c.task_id, c.pinned_to, s.capabilities as required,
       exists (select 1 from fleet.host_agents ha
                where ha.host_id = split_part(c.pinned_to, '/', 1) and s.capabilities <@ ha.capabilities) as servable
  from (select distinct name from unnest($1::text[]) as n(name)) n
 cross join lateral (
   select t.task_id, t.spec_version, t.pinned_to, t.seq
     from fleet.tasks t
    where t.host_agent_id is null and t.holder is null and t.pinned_to = n.name
      and t.status = 'assigned' and t.execution_mode = 'ssh_cli'
    order by t.seq
    limit $2::bigint) c
  join fleet.task_specs s on s.task_id = c.task_id and s.version = c.spec_version
 order by c.seq
