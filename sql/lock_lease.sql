-- Purpose: holds a task's row while its holder appends output, so that two appends of one lease come one after the other.
-- Locks:   the task, FOR NO KEY UPDATE.
-- Index:   tasks_pkey.
-- $1 uuid: task.
select status, lease, holder, attempt, execution_mode from fleet.tasks where task_id = $1 for no key update
