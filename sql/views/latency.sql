-- Purpose: how long the tasks that were completed in the last hour took, by lane.
-- Index:   task_events_at; tasks_pkey.
create or replace view fleet.latency as
with done as materialized (
  select distinct e.task_id
    from fleet.task_events e
   where e.at >= now() - interval '1 hour' and e.type in ('completed', 'review_pending')
),
took as (
  select t.lane_id, extract(epoch from t.assigned_at - t.created_at) as waited,
         extract(epoch from coalesce(t.completed_at, t.last_activity_at) - t.assigned_at) as worked,
         extract(epoch from coalesce(t.completed_at, t.last_activity_at) - t.created_at) as total
    from done d
    join fleet.tasks t on t.task_id = d.task_id
   where t.assigned_at is not null and t.status in ('completed', 'review_pending')
)
select k.lane_id, l.capabilities, k.tasks,
       k.waited[1] as waited_p50, k.waited[2] as waited_p95, k.waited[3] as waited_p99,
       k.worked[1] as worked_p50, k.worked[2] as worked_p95, k.worked[3] as worked_p99,
       k.total[1] as total_p50, k.total[2] as total_p95, k.total[3] as total_p99
  from (select lane_id, count(*) as tasks,
               percentile_cont(array[0.5, 0.95, 0.99]) within group (order by waited::double precision) as waited,
               percentile_cont(array[0.5, 0.95, 0.99]) within group (order by worked::double precision) as worked,
               percentile_cont(array[0.5, 0.95, 0.99]) within group (order by total::double precision) as total
          from took group by lane_id) k
  left join fleet.lanes l on l.lane_id = k.lane_id;

comment on view fleet.latency is 'How long the tasks took that were completed (or handed over to review) in the last hour, by lane, in seconds.';
comment on column fleet.latency.lane_id is 'The lane.';
comment on column fleet.latency.capabilities is 'What its tasks require.';
comment on column fleet.latency.tasks is 'How many tasks these figures are of.';
comment on column fleet.latency.waited_p50 is 'Seconds from made to assigned, median. A retried task counts up to its last attempt.';
comment on column fleet.latency.waited_p95 is 'The same, 95 % took no longer.';
comment on column fleet.latency.waited_p99 is 'The same, 99 % took no longer.';
comment on column fleet.latency.worked_p50 is 'Seconds from assigned to completed, median.';
comment on column fleet.latency.worked_p95 is 'The same, 95 % took no longer.';
comment on column fleet.latency.worked_p99 is 'The same, 99 % took no longer.';
comment on column fleet.latency.total_p50 is 'Seconds from made to completed, median.';
comment on column fleet.latency.total_p95 is 'The same, 95 % took no longer.';
comment on column fleet.latency.total_p99 is 'The same, 99 % took no longer.';
