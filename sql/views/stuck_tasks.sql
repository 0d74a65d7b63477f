-- Purpose: tasks that do not move and would without help not be noticed, each with what is wrong.
-- Index:   tasks_due; tasks_held; tasks_ready_pull, tasks_ready_push (heads of lanes); task_specs_pkey.
create or replace view fleet.stuck_tasks as
with found as (
  -- The loops act on due_at within a second.
  select t.task_id, t.due_at as since,
         case when t.holder is not null then 'past_deadline'
              when t.status = 'scheduled' then 'overdue'
              else 'pin_overdue' end as problem
    from fleet.tasks t
   where t.due_at is not null and t.due_at < now() - interval '1 minute'
  union all
  select t.task_id, coalesce(s.ended_at, s.last_heartbeat_at + s.ttl), 'holder_gone'
    from fleet.tasks t
    left join fleet.sessions s on s.session_id = t.holder
   where t.holder is not null
     and (s.session_id is null or coalesce(s.ended_at, s.last_heartbeat_at + s.ttl) < now() - interval '1 minute')
  union all
  select t.task_id, t.last_activity_at, 'no_sign_of_life'
    from fleet.tasks t
   where t.holder is not null and t.status = 'running' and t.last_activity_at < now() - interval '1 hour'
  union all
  select t.task_id, t.last_activity_at, 'review_waits'
    from fleet.tasks t
   where t.status = 'review_pending' and t.last_activity_at < now() - interval '7 days'
  union all
  select c.task_id, c.ready_at, 'no_lane'
    from (select t.task_id, t.ready_at from fleet.tasks t
           where t.lane_id is null and t.status = 'created' and t.execution_mode in ('http_pull', 'undecided')
          union
          select t.task_id, t.ready_at from fleet.tasks t
           where t.lane_id is null and t.status = 'created' and t.execution_mode in ('ssh_cli', 'undecided')) c
   where c.ready_at < now() - interval '1 minute'
  union all
  select c.task_id, c.ready_at, 'nobody_can'
    from (select lane_id, array_agg(execution_mode) as modes
            from fleet.lane_reasons where waiting_reason = 'no_capable_agent' group by lane_id) r
   cross join lateral (
     (select t.task_id, t.ready_at, t.execution_mode from fleet.tasks t
       where t.lane_id = r.lane_id and t.status = 'created' and t.execution_mode in ('http_pull', 'undecided')
       order by t.priority desc, t.seq limit 10)
     union
     (select t.task_id, t.ready_at, t.execution_mode from fleet.tasks t
       where t.lane_id = r.lane_id and t.status = 'created' and t.execution_mode in ('ssh_cli', 'undecided')
       order by t.priority desc, t.seq limit 10)) c
   where c.execution_mode = any (r.modes) and c.ready_at < now() - interval '5 minutes'
)
select f.task_id, t.key, s.title, t.status, t.execution_mode, f.problem, now() - f.since as stuck_for,
       coalesce(t.assigned_agent_id, t.assigned_host, t.pinned_to) as holder, t.lane_id, t.lease, t.attempt, t.error
  from found f
  join fleet.tasks t on t.task_id = f.task_id
  left join fleet.task_specs s on s.task_id = t.task_id and s.version = t.spec_version;

comment on view fleet.stuck_tasks is 'Tasks that do not move, each with what is wrong. Empty while all is well.';
comment on column fleet.stuck_tasks.task_id is 'The task.';
comment on column fleet.stuck_tasks.key is 'Its name; null if nobody gave it one.';
comment on column fleet.stuck_tasks.title is 'Its title.';
comment on column fleet.stuck_tasks.status is 'As the API has it.';
comment on column fleet.stuck_tasks.execution_mode is 'undecided, ssh_cli or http_pull.';
comment on column fleet.stuck_tasks.problem is 'past_deadline, overdue, pin_overdue, holder_gone (these end within seconds while a coordinator runs), no_sign_of_life (running, nothing heard for an hour), review_waits (a week), no_lane, nobody_can (no agent or host has what it requires; of each lane the first ten).';
comment on column fleet.stuck_tasks.stuck_for is 'Since the problem began.';
comment on column fleet.stuck_tasks.holder is 'Who holds it, is to have it, or had it last.';
comment on column fleet.stuck_tasks.lane_id is 'Its lane.';
comment on column fleet.stuck_tasks.lease is 'The fencing number.';
comment on column fleet.stuck_tasks.attempt is 'Attempts so far.';
comment on column fleet.stuck_tasks.error is 'Why the last attempt failed.';
