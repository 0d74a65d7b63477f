-- Purpose: calls a task off, and leaves its holder, when that is an agent, a notice.
-- Locks:   the task; then appends.
-- Index:   tasks_pkey; runs_pkey.
-- $1 uuid: task; $2 text: actor; $3 text: reason.
with cur as materialized (
  select t.task_id, t.status, t.lease, t.holder, t.host_agent_id, t.attempt,
         -- what the trace of a traced task is told of this attempt
         case when t.holder is not null and t.traceparent is not null then jsonb_build_object(
           'traceparent', t.traceparent, 'agent_id', t.assigned_agent_id, 'host', t.assigned_host,
           'claimed_secs', extract(epoch from clock_timestamp() - t.assigned_at),
           'started_secs', extract(epoch from clock_timestamp() - t.started_at)) end as trace
    from fleet.tasks t
   where t.task_id = $1
     for update
),
cancelled as (
  update fleet.tasks t
     set status = 'cancelled', holder = null, host_agent_id = null, deadline_at = null, pinned_to = null,
         pinned_until = null, run_at = null, completed_at = now(), last_activity_at = now()
    from cur
   where t.task_id = cur.task_id
     and cur.status in ('scheduled', 'created', 'assigned', 'running', 'review_pending')
  returning t.task_id
),
run as (
  update fleet.runs r set state = 'ended', ended_at = now()
    from cancelled c where r.task_id = c.task_id and r.state <> 'ended'
),
notice as (
  insert into fleet.cancel_notices (session_id, task_id, lease)
  select cur.holder, cur.task_id, cur.lease
    from cur join cancelled using (task_id)
   where cur.holder is not null and cur.host_agent_id is null
  on conflict do nothing
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select cur.task_id, 'cancelled', cur.status, 'cancelled', $2::text, cur.lease, cur.attempt,
         jsonb_strip_nulls(jsonb_build_object('reason', $3::text))
    from cur join cancelled using (task_id)
)
select cur.status, cur.lease, cur.holder, c.task_id is not null as applied,
       pg_current_xact_id()::text as xid, cur.trace
  from cur left join cancelled c on true
