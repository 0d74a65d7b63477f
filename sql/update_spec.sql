-- Purpose: a new version of what is to be done; a changed set of requirements moves the task to another lane. Notes stay.
-- Locks:   the task, locked before in the same transaction; then appends.
-- Index:   tasks_pkey; task_specs_pkey; lanes_capabilities_key.
-- $1 uuid: task; $2 text: title; $3 text: body; $4 text[]: labels; $5 text[]: capabilities; $6 jsonb: repo;
-- $7 text: issue_url; $8 smallint: priority; $9 text: actor.
with task as (
  update fleet.tasks t
     set spec_version = t.spec_version + 1, priority = $8,
         lane_id = (select l.lane_id from fleet.lanes l where l.capabilities = $5::text[] and l.retired_xid is null), last_activity_at = now()
   where t.task_id = $1
  returning t.task_id, t.spec_version, t.lease, t.attempt
),
spec as (
  insert into fleet.task_specs (task_id, version, title, body, labels, capabilities, repo, issue_url, notes)
  select task.task_id, task.spec_version, $2, $3, $4, $5, $6, $7, old.notes
    from task
    join fleet.task_specs old on old.task_id = task.task_id and old.version = task.spec_version - 1
)
insert into fleet.task_events (task_id, type, actor, lease, attempt, detail)
select task_id, 'updated', $9, lease, attempt, jsonb_build_object('version', spec_version) from task
