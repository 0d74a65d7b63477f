-- Purpose: which version of its issue a task has taken over.
-- Locks:   the task, locked before in the same transaction.
-- Index:   tasks_pkey.
-- $1 uuid: task; $2 bigint: version; $3 boolean: whether the issue is open.
update fleet.tasks set issue_version = $2, issue_open = $3 where task_id = $1
