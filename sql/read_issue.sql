-- Purpose: the newest state of an issue and the stored text of its task; read after the task is locked.
-- Locks:   none.
-- Index:   forge_issues_pkey; task_specs_pkey.
-- $1 text: key; $2 uuid: task, or null; $3 integer: its newest spec version.
select f.version, f.reopened_version, f.state, s.title, s.body, s.labels, s.capabilities
  from fleet.forge_issues f
  left join fleet.task_specs s on s.task_id = $2::uuid and s.version = $3::integer
 where f.key = $1
