-- Purpose: the sets of requirements of ready tasks that have no lane yet (enqueued by SQL within somebody's transaction).
-- Locks:   none.
-- Index:   tasks_ready_pull, tasks_ready_push (lane_id is null is their first key); task_specs_pkey.
select distinct to_jsonb(s.capabilities) as capabilities
  from (select task_id, spec_version from fleet.tasks
         where lane_id is null and status = 'created' and execution_mode in ('http_pull', 'undecided')
        union all
        select task_id, spec_version from fleet.tasks
         where lane_id is null and status = 'created' and execution_mode in ('ssh_cli', 'undecided')
         limit 2000) t
  join fleet.task_specs s on s.task_id = t.task_id and s.version = t.spec_version
