-- Purpose: reservations that ran out: the task returns to the queue in the mode it was created with.
-- Locks:   those tasks, FOR UPDATE SKIP LOCKED.
-- Index:   tasks_due.
-- $1 bigint: at most this many; $2 text: actor.
with over as materialized (
  select task_id, pinned_to
    from fleet.tasks
   where due_at is not null and due_at <= now() and status = 'assigned' and holder is null
   order by due_at
   limit $1
     for update skip locked
),
freed as (
  update fleet.tasks t
     set status = 'created', execution_mode = t.created_mode, pinned_to = null, pinned_until = null, ready_at = now()
    from over
   where t.task_id = over.task_id and t.status = 'assigned' and t.holder is null
  returning t.task_id, t.lease, t.attempt, over.pinned_to
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, 'pin_expired', 'assigned', 'created', $2::text, lease, attempt,
         jsonb_build_object('pinned_to', pinned_to)
    from freed
)
select task_id, lease, attempt from freed
