-- The reference of `webhook`, for pgbench: the rows of one delivery that opens an issue, in one commit. No signature, no
-- JSON from outside, no look at what there is. Two variables: "lane" says where its task waits, "capability" is what it requires.
with made as materialized (
  select fleet.uuid_v7() as task_id, 'demo/fleet#' || gen_random_uuid()::text as key
),
issue as (
  insert into fleet.forge_issues (key, updated_at, body_hash, state)
  select key, now(), '\x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef',
         jsonb_build_object(
           'title', 'An issue of the bench', 'body', repeat('b', 500), 'labels', array[:capability::text],
           'capabilities', array[:capability::text], 'priority', 'normal',
           'repo', jsonb_build_object('full_name', 'demo/fleet', 'clone_url', null, 'ssh_url', null, 'default_branch', 'main'),
           'issue_url', 'http' || chr(58) || '//127.0.0.1/demo/fleet/issues/1', 'open', true, 'updated_at', now(),
           'commit_id', null, 'reopened', false, 'sender', 'demo')
    from made
),
task as (
  insert into fleet.tasks (task_id, key, source, lane_id, issue_version, issue_open)
  select task_id, key, 'forgejo', :lane, 1, true from made
),
spec as (
  insert into fleet.task_specs (task_id, title, body, labels, capabilities, repo, issue_url, request_hash)
  select task_id, 'An issue of the bench', repeat('b', 500), array[:capability::text], array[:capability::text],
         '{"full_name": "demo/fleet", "clone_url": null, "ssh_url": null, "default_branch": "main"}',
         'http' || chr(58) || '//127.0.0.1/demo/fleet/issues/1',
         '\x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'
    from made
),
event as (
  insert into fleet.task_events (task_id, type, to_status, actor, detail)
  select task_id, 'created', 'created', 'forgejo' || chr(58) || 'demo', '{"execution_mode": "undecided"}' from made
)
insert into fleet.webhook_deliveries (delivery_id, body_hash, event, action, result, task_id)
select gen_random_uuid()::text, '\x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef', 'issues', 'opened',
       'created', task_id
  from made;
