-- Purpose: how much there is to do: unended tasks by lane, mode and status (pinned ones apart from leased
--          ones), and how old the oldest is.
-- Index:   tasks_ready_pull, tasks_ready_push; tasks_held, tasks_due: joined as bitmaps; each arm of a condition implies
--          the predicate of one. With most of the table waiting, one scan of it, which groups by as little as it can.
create or replace view fleet.queue_depth as
-- Each planned by itself: together they are read by parallel workers also where starting these takes longest.
with ready as materialized (
  select t.lane_id, t.execution_mode, 'created' as status, false as held, count(*) as tasks,
         min(t.ready_at) as oldest_at
    from fleet.tasks t
   where (t.status = 'created' and t.execution_mode in ('undecided', 'http_pull'))
      or (t.status = 'created' and t.execution_mode = 'ssh_cli')
   group by t.lane_id, t.execution_mode
),
other as materialized (
  select t.lane_id, t.execution_mode, t.status, t.holder is not null as held, count(*) as tasks,
         min(t.created_at) as oldest_at
    from fleet.tasks t
   where t.status <> 'created'
     and (t.holder is not null or t.pinned_to is not null or t.status = 'review_pending' or t.due_at is not null)
   group by t.lane_id, t.execution_mode, t.status, t.holder is not null
)
select q.lane_id, l.capabilities, q.execution_mode, q.status, q.tasks, now() - q.oldest_at as oldest_age,
       case when q.held then null
            when q.status = 'created' then r.waiting_reason
            else fleet.waiting_reason(q.status, q.execution_mode, null, l.capabilities, q.lane_id) end as waiting_reason,
       l.paused_at is not null as paused
  from (select * from ready union all select * from other) q
  left join fleet.lanes l on l.lane_id = q.lane_id
  left join fleet.lane_reasons r on r.lane_id = q.lane_id and r.execution_mode = q.execution_mode;

comment on view fleet.queue_depth is 'How much there is to do: unended tasks by lane, mode and status.';
comment on column fleet.queue_depth.lane_id is 'The lane; null while a task that came by SQL has none yet.';
comment on column fleet.queue_depth.capabilities is 'What tasks of the lane require.';
comment on column fleet.queue_depth.execution_mode is 'undecided, ssh_cli or http_pull.';
comment on column fleet.queue_depth.status is 'As the API has it. A task that the forge completed while it was held counts until its lease ends.';
comment on column fleet.queue_depth.tasks is 'How many. Exact.';
comment on column fleet.queue_depth.oldest_age is 'For created tasks: since the oldest of them last became ready. Else: since the oldest was made.';
comment on column fleet.queue_depth.waiting_reason is 'Why the tasks wait, in the words of the API; null for those that do not, and until the lane is known.';
comment on column fleet.queue_depth.paused is 'Whether an operator has paused the lane.';
