-- Purpose: whether a lease is still held, and if not, how the task stands.
-- Locks:   none.
-- Index:   tasks_pkey; runs_pkey.
-- $1 uuid: task.
select t.status, t.lease, t.holder, t.execution_mode,
       (select max(r.run_lease) from fleet.runs r where r.task_id = t.task_id) as run_lease
  from fleet.tasks t where t.task_id = $1
