-- Purpose: what went wrong in the last day, like with like.
-- Index:   task_events_wrong; tasks_pkey for one key of each group.
create or replace view fleet.failures as
with wrong as materialized (
  select e.type, coalesce(left(e.detail ->> 'reason', 200), 'no reason given') as reason, count(*) as attempts,
         count(distinct e.task_id) as tasks, count(*) filter (where e.to_status in ('failed', 'agent_lost')) as final,
         min(e.at) as first_at, max(e.at) as last_at,
         (array_agg(e.task_id order by e.at desc))[1] as last_task
    from fleet.task_events e
   where e.at >= now() - interval '1 day' and e.type in ('failed', 'timed_out', 'lost')
   group by 1, 2
)
select w.type, w.reason, w.attempts, w.tasks, w.final, w.first_at, w.last_at, coalesce(t.key, t.task_id::text) as last_key,
       coalesce(t.assigned_agent_id, t.assigned_host) as last_holder
  from wrong w
  left join fleet.tasks t on t.task_id = w.last_task;

comment on view fleet.failures is 'What went wrong in the last day, grouped by kind and reason.';
comment on column fleet.failures.type is 'failed (a receipt said so), timed_out, or lost (its holder was).';
comment on column fleet.failures.reason is 'The first 200 characters of what was said.';
comment on column fleet.failures.attempts is 'How many attempts ended so.';
comment on column fleet.failures.tasks is 'Of how many tasks.';
comment on column fleet.failures.final is 'How many of the attempts were the last of their task.';
comment on column fleet.failures.first_at is 'The first, within the day.';
comment on column fleet.failures.last_at is 'The last.';
comment on column fleet.failures.last_key is 'The task whose attempt was the last, by its key or else its id.';
comment on column fleet.failures.last_holder is 'Who has, or had last, that task.';
