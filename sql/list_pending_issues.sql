-- Purpose: which of these tasks, free again, have a newer state of their issue waiting.
-- Locks:   none.
-- Index:   tasks_pkey; forge_issues_pkey.
-- $1 uuid[]: tasks.
select t.key
  from fleet.tasks t
  join fleet.forge_issues f on f.key = t.key
 where t.task_id = any ($1::uuid[]) and t.holder is null and f.version > coalesce(t.issue_version, 0)
 order by t.key
