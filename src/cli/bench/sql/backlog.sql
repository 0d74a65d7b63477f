-- Tasks that no agent of the bench can take: :tasks of them, spread over :lanes lanes, made within the last day.
insert into fleet.lanes (capabilities)
select array['agent:foreign-' || lpad(n::text, 3, '0')] from generate_series(1, :lanes) as n
on conflict do nothing;
with lane as materialized (
  select lane_id, capabilities, row_number() over (order by lane_id) - 1 as place
    from fleet.lanes where capabilities[1] like 'agent:foreign-%'
),
made as materialized (
  select fleet.uuid_v7() as task_id, i, now() - interval '1 day' * (1 - i / :tasks::float8) as at, lane_id, capabilities
    from generate_series(1, :tasks) as i join lane on lane.place = i % :lanes
),
task as (
  insert into fleet.tasks (task_id, key, source, lane_id, priority, ready_at, created_at)
  select task_id, 'foreign/' || task_id, 'api', lane_id, 1 + (i % 10 = 0)::integer, at, at from made order by i
)
insert into fleet.task_specs (task_id, title, body, labels, capabilities)
select task_id, 'A task that waits', 'It is for others.', capabilities, capabilities from made;
select '{}';
