-- Purpose: how many unended tasks there are by lane, mode and status, and since when the oldest waits; for metrics.
-- Locks:   none.
-- Index:   tasks_ready_pull, tasks_ready_push, tasks_held, tasks_due, joined as bitmaps: each arm of the condition is the
--          predicate of one. With most of the table waiting, one scan of it.
select q.status, q.execution_mode, coalesce(l.capabilities, '{}') as capabilities, q.tasks, q.oldest_secs
  from (select t.lane_id, t.status, t.execution_mode, count(*) as tasks,
               extract(epoch from now() - min(t.ready_at))::float8 as oldest_secs
          from fleet.tasks t
         where (t.status = 'created' and t.execution_mode in ('http_pull', 'undecided'))
            or (t.status = 'created' and t.execution_mode in ('ssh_cli', 'undecided'))
            or t.holder is not null or t.pinned_to is not null or t.status = 'review_pending'
            or t.due_at is not null
         group by t.lane_id, t.status, t.execution_mode) q
  left join fleet.lanes l on l.lane_id = q.lane_id
