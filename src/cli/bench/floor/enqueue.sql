-- The reference of `enqueue`, for pgbench: the rows of 500 new tasks, made by the server itself (nothing is sent, parsed
-- or answered), in one commit. Two variables: "lane" says where they wait, "capability" is what they require.
with made as materialized (
  select fleet.uuid_v7() as task_id, i from generate_series(1, 500) as i
),
task as (
  insert into fleet.tasks (task_id, source, lane_id)
  select task_id, 'api', :lane from made order by i
  returning task_id
),
spec as (
  insert into fleet.task_specs (task_id, title, body, labels, capabilities)
  select task_id, 'A task of the bench', repeat('b', 500), array[:capability::text], array[:capability::text] from made
)
insert into fleet.task_events (task_id, type, to_status, actor, detail)
select task_id, 'created', 'created', 'operator' || chr(58) || 'admin', '{"execution_mode": "undecided"}' from task;
