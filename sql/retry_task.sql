-- Purpose: an operator, or the forge by reopening the issue, wants an ended task run again.
-- Locks:   the task; then appends.
-- Index:   tasks_pkey.
-- $1 uuid: task; $2 text: actor; $3 text: null or the mode it shall have from now on; $4 text: retried or reopened
-- (reopened also restarts what was completed).
with cur as materialized (
  select task_id, status, lease, holder, attempt from fleet.tasks where task_id = $1 for update
),
again as (
  update fleet.tasks t
     set status = 'created', execution_mode = coalesce($3::text, t.created_mode),
         created_mode = coalesce($3::text, t.created_mode), holder = null, host_agent_id = null, deadline_at = null,
         retry_count = 0, refund_count = 0, completed_at = null, ready_at = now(), error = null,
         last_activity_at = now()
    from cur
   where t.task_id = cur.task_id
     and (cur.status in ('failed', 'agent_lost', 'cancelled') or (cur.status = 'completed' and $4::text = 'reopened'))
  returning t.task_id
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select cur.task_id, $4::text, cur.status, 'created', $2::text, cur.lease, cur.attempt,
         jsonb_strip_nulls(jsonb_build_object('execution_mode', $3::text))
    from cur join again using (task_id)
)
select cur.status, cur.lease, cur.holder, a.task_id is not null as applied,
       pg_current_xact_id()::text as xid
  from cur left join again a on true
