-- Purpose: tasks as the API shows them, in full: with the version of the text that the holder was given, else the newest.
-- Locks:   none.
-- Index:   tasks_pkey; task_specs_pkey; sessions_pkey; receipts_pkey.
-- $1 uuid[]: ids.
with task as materialized (
  select t.*, s.title, s.labels, s.capabilities, s.repo, s.issue_url, s.notes, s.body,
         t.holder is null and t.status in ('scheduled', 'created', 'assigned') as waits
    from fleet.tasks t
    join fleet.task_specs s on s.task_id = t.task_id
         and s.version = case when t.holder is null then t.spec_version else t.claimed_version end
   where t.task_id = any ($1::uuid[])
),
-- Asked only for what waits, and once for all that wait alike: it looks around, and that is not free.
reason as materialized (
  select a.*, fleet.waiting_reason(a.status, a.execution_mode, null, a.capabilities, a.lane_id) as waiting_reason
    from (select distinct status, execution_mode, capabilities, lane_id from task where waits) a
)
select t.task_id, coalesce(t.key, t.task_id::text) as key, t.source, t.priority, t.status,
       t.execution_mode, t.pinned_to, t.lease, t.attempt,
       t.max_retries, t.retry_count, t.review_count, t.timeout_secs, t.run_at, t.deadline_at,
       case when t.status = 'assigned' and t.holder is null and t.execution_mode = 'http_pull'
            then t.pinned_to else t.assigned_agent_id end as assigned_agent_id,
       case when t.status = 'assigned' and t.holder is null and t.execution_mode = 'ssh_cli'
            then t.pinned_to else t.assigned_host end as assigned_host,
       h.last_heartbeat_at + h.ttl as lease_expires_at,
       t.created_at, t.assigned_at, t.started_at, t.completed_at, t.last_activity_at, t.pr_url, t.pr_title, t.error,
       t.traceparent,
       t.title, t.labels, t.capabilities, t.repo, t.issue_url, t.notes,
       r.body ->> 'summary' as summary, r.body -> 'usage' as usage,
       w.waiting_reason,
       t.body
  from task t
  left join reason w on t.waits and w.status = t.status and w.execution_mode = t.execution_mode
       and w.capabilities = t.capabilities and w.lane_id is not distinct from t.lane_id
  left join fleet.sessions h on h.session_id = t.holder and h.ended_at is null
  left join lateral (select body from fleet.receipts r
                      where r.task_id = t.task_id order by r.lease desc limit 1) r on true
