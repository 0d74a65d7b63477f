-- Purpose: pins a task to an agent or host: reserved, not leased. What it requires is checked by the caller unless forced.
-- Locks:   the task; then appends.
-- Index:   tasks_pkey.
-- $1 uuid: task; $2 text: target; $3 text: mode; $4 double precision: reservation in seconds; $5 text: actor.
with cur as materialized (
  select task_id, status, lease, holder, attempt from fleet.tasks where task_id = $1 for update
),
pinned as (
  update fleet.tasks t
     set status = 'assigned', execution_mode = $3::text, pinned_to = $2::text,
         pinned_until = now() + make_interval(secs => $4), run_at = null, last_activity_at = now()
    from cur
   where t.task_id = cur.task_id
     and (cur.status in ('created', 'scheduled') or (cur.status = 'assigned' and cur.holder is null))
  returning t.task_id
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select cur.task_id, 'pinned', cur.status, 'assigned', $5::text, cur.lease, cur.attempt,
         jsonb_build_object('pinned_to', $2::text, 'execution_mode', $3::text)
    from cur join pinned using (task_id)
)
select cur.status, cur.lease, cur.holder, p.task_id is not null as applied,
       pg_current_xact_id()::text as xid
  from cur left join pinned p on true
