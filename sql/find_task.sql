-- Purpose: the id of a task named by its key.
-- Locks:   none.
-- Index:   tasks_key.
-- $1 text: key.
select task_id from fleet.tasks where key = $1
