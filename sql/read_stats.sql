-- Purpose: the figures of GET /api/v1/stats. Live tasks are counted exactly, as fleet.queue_depth does. Ended ones are too
--          while there are few; in a large table they are estimated from the planner's statistics.
-- Locks:   none.
-- Index:   those of fleet.queue_depth; task_events_at.
with depth as materialized (
  select lane_id, execution_mode, status, tasks, waiting_reason, extract(epoch from oldest_age) as oldest_secs
    from fleet.queue_depth
),
ended as (
  select case when (select reltuples from pg_class where oid = 'fleet.tasks'::regclass) < 100000
    then (select jsonb_object_agg(x.status, x.tasks)
            from (select t.status, count(*) as tasks from fleet.tasks t
                   where t.status in ('completed', 'failed', 'agent_lost', 'cancelled') group by t.status) x)
    else (select jsonb_object_agg(s.status, round(s.freq * c.reltuples)::bigint)
            from pg_class c, pg_stats p, unnest(p.most_common_vals::text::text[], p.most_common_freqs) s(status, freq)
           where c.oid = 'fleet.tasks'::regclass
             and p.schemaname = 'fleet' and p.tablename = 'tasks' and p.attname = 'status'
             and s.status in ('completed', 'failed', 'agent_lost', 'cancelled')) end as by_status
),
recent as materialized (
  select count(*) filter (where e.at > now() - interval '1 minute') as minute, count(*) as hour
    from fleet.task_events e
   where e.at > now() - interval '1 hour' and e.to_status in ('completed', 'review_pending')
)
select jsonb_build_object(
  'by_status', coalesce((select by_status from ended), '{}')
    || coalesce((select jsonb_object_agg(status, tasks)
                   from (select status, sum(tasks) as tasks from depth
                          where status in ('scheduled', 'created', 'assigned', 'running', 'review_pending')
                          group by status) x), '{}'),
  'by_mode', coalesce((select jsonb_object_agg(execution_mode, tasks)
                         from (select execution_mode, sum(tasks) as tasks from depth group by execution_mode) x), '{}'),
  'by_capabilities', coalesce((
    select jsonb_agg(jsonb_build_object(
             'capabilities', to_jsonb(l.capabilities), 'waiting', coalesce(d.waiting, 0), 'running', coalesce(d.running, 0),
             'oldest_waiting_secs', d.oldest, 'paused', l.paused_at is not null) order by l.capabilities)
      from fleet.lanes l
      left join (select lane_id, sum(tasks) filter (where waiting_reason is not null) as waiting,
                        sum(tasks) filter (where waiting_reason is null and status in ('assigned', 'running')) as running,
                        floor(max(oldest_secs) filter (where status = 'created'))::bigint as oldest
                   from depth group by lane_id) d on d.lane_id = l.lane_id), '[]'),
  'throughput', (select jsonb_build_object('minute', minute, 'hour', hour) from recent)) as stats
