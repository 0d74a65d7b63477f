-- Purpose: puts ready tasks without a lane into the lane of their set, once that has been interned.
-- Locks:   those tasks, by id, SKIP LOCKED.
-- Index:   tasks_ready_pull, tasks_ready_push; task_specs_pkey; lanes_capabilities_key.
-- $1 integer: at most this many.
with ready as materialized (
  select t.task_id, t.spec_version
    from fleet.tasks t
   where t.lane_id is null and t.status = 'created'
     and (t.execution_mode in ('http_pull', 'undecided') or t.execution_mode in ('ssh_cli', 'undecided'))
   order by t.task_id
   limit $1::integer
     for update skip locked
)
update fleet.tasks t
   set lane_id = l.lane_id
  from ready r
  join fleet.task_specs s on s.task_id = r.task_id and s.version = r.spec_version
  join fleet.lanes l on l.capabilities = s.capabilities and l.retired_xid is null
 where t.task_id = r.task_id
