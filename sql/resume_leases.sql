-- Purpose: an agent registers anew and says which of its tasks it still works on: those leases pass to its new session.
--          The lease stays the same; the old sessions can no longer write.
-- Locks:   those tasks, by id; then appends.
-- Index:   tasks_pkey.
-- $1 uuid[]: tasks; $2 uuid[]: the sessions before; $3 uuid: the new session; $4 text: actor.
with cur as materialized (
  select task_id, holder from fleet.tasks where task_id = any ($1::uuid[]) order by task_id for update
),
resumed as (
  update fleet.tasks t
     set holder = $3, last_activity_at = now()
    from cur
   where t.task_id = cur.task_id and cur.holder = any ($2::uuid[])
  returning t.task_id, t.lease, t.attempt
),
event as (
  insert into fleet.task_events (task_id, type, actor, lease, attempt)
  select task_id, 'resumed', $4::text, lease, attempt from resumed
)
select task_id, lease, attempt from resumed order by task_id
