-- Purpose: scheduled tasks whose time has come are ready.
-- Locks:   those tasks, FOR UPDATE SKIP LOCKED.
-- Index:   tasks_due.
-- $1 bigint: at most this many; $2 text: actor.
with due as materialized (
  select task_id
    from fleet.tasks
   where due_at is not null and due_at <= now() and status = 'scheduled'
   order by due_at
   limit $1
     for update skip locked
),
ready as (
  update fleet.tasks t
     set status = 'created', run_at = null, ready_at = now()
    from due
   where t.task_id = due.task_id and t.status = 'scheduled'
  returning t.task_id, t.lease, t.attempt
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt)
  select task_id, 'due', 'scheduled', 'created', $2::text, lease, attempt from ready
)
select task_id, lease, attempt from ready
