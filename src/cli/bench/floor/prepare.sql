-- Tasks for the floor to take, in a lane of their own: the rows that the coordinator would have made for them.
-- :lane is its capability, :tasks how many. Answers its lane_id.
insert into fleet.lanes (capabilities) values (array[:'lane']) on conflict do nothing;
with made as materialized (
  select fleet.uuid_v7() as task_id, i
    from generate_series(1, :tasks) as i
),
task as (
  insert into fleet.tasks (task_id, source, lane_id)
  select task_id, 'api', (select lane_id from fleet.lanes where capabilities = array[:'lane'])
    from made
   order by i
  returning task_id
),
spec as (
  insert into fleet.task_specs (task_id, title, body, labels, capabilities)
  select task_id, 'A task of the bench', repeat('b', 500), array[:'lane'], array[:'lane'] from made
)
insert into fleet.task_events (task_id, type, to_status, actor, detail)
select task_id, 'created', 'created', 'operator:admin', '{"execution_mode": "undecided"}' from task;
select json_build_object('lane_id', lane_id) from fleet.lanes where capabilities = array[:'lane'];
