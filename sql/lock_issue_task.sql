-- Purpose: holds the task of an issue while its newest state is applied to it.
-- Locks:   the task.
-- Index:   tasks_key.
-- $1 text: key.
select task_id, status, lease, holder, spec_version, priority, issue_version, issue_open, pr_url is not null as has_pr
  from fleet.tasks where key = $1 for update
