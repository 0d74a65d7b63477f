-- Purpose: the life of a task, step by step. Meant to be asked for one: `where key = …` or `where task_id = …`.
-- Index:   tasks_key or tasks_pkey; task_events_task.
create or replace view fleet.task_timeline as
select t.task_id, t.key, e.event_id, e.at, e.at - t.created_at as since_created, e.after, e.type, e.from_status,
       e.to_status, e.actor, e.lease, e.attempt, e.detail
  from fleet.tasks t
 cross join lateral (
   select e.event_id, e.at, e.at - lag(e.at) over (order by e.event_id) as after, e.type, e.from_status, e.to_status,
          e.actor, e.lease, e.attempt, e.detail
     from fleet.task_events e
    where e.task_id = t.task_id) e;

comment on view fleet.task_timeline is 'The life of a task, step by step. Ask it for one task, by key or task_id: it has a row for each event of each.';
comment on column fleet.task_timeline.task_id is 'The task.';
comment on column fleet.task_timeline.key is 'Its name; null if nobody gave it one.';
comment on column fleet.task_timeline.event_id is 'The event; order by this.';
comment on column fleet.task_timeline.at is 'When.';
comment on column fleet.task_timeline.since_created is 'Since the task was made.';
comment on column fleet.task_timeline.after is 'Since the event before.';
comment on column fleet.task_timeline.type is 'What happened.';
comment on column fleet.task_timeline.from_status is 'The status before.';
comment on column fleet.task_timeline.to_status is 'The status after; null where it did not change.';
comment on column fleet.task_timeline.actor is 'Who did it.';
comment on column fleet.task_timeline.lease is 'The fencing number at that time.';
comment on column fleet.task_timeline.attempt is 'The attempt at that time.';
comment on column fleet.task_timeline.detail is 'What else is known of it.';
