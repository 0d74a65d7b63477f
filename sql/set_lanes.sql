-- Purpose: puts ready tasks without a lane into the lane of their set, once that has been interned. Only those that have one
--          count: the oldest may be of sets that sql/list_laneless_sets.sql has not come to yet.
-- Locks:   those tasks, SKIP LOCKED: nobody is waited for, so the order is any.
-- Index:   tasks_ready_pull, tasks_ready_push; task_specs_pkey; lanes_capabilities_key.
-- $1 integer: at most this many.
with ready as materialized (
  select t.task_id, l.lane_id
    from fleet.tasks t
    join fleet.task_specs s on s.task_id = t.task_id and s.version = t.spec_version
    join fleet.lanes l on l.capabilities = s.capabilities and l.retired_xid is null
   where t.lane_id is null and t.status = 'created'
     and (t.execution_mode in ('http_pull', 'undecided') or t.execution_mode in ('ssh_cli', 'undecided'))
   limit $1::integer
     for update of t skip locked
)
update fleet.tasks t
   set lane_id = r.lane_id
  from ready r
 where t.task_id = r.task_id
