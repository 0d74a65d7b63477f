-- Purpose: ends leases whose receipts say completed: what sql/end_leases.sql does with them, for the commonest of all cases at
--          three quarters of its price. Without reading them first it locks, changes and shows only tasks that are held
--          and worked on; whatever it does not return is for sql/end_leases.sql to judge.
-- Locks:   tasks by id; then appends.
-- Index:   tasks_pkey; task_specs_pkey.
-- $1 uuid[]: tasks, each once; $2 bigint[]: lease; $3 uuid[]: session; $4 jsonb[]: receipt; $5 bytea[]: its hash;
-- $6 text[]: actor (agent_id or host/agent of the receipt behind its first colon); $7 text[]: the pull request that the
-- receipt names; $8 bigint[]: place in the request, returned.
with ended as (
  update fleet.tasks t
     set status = case when i.pr_url is null then 'completed' else 'review_pending' end,
         holder = null, host_agent_id = null, claim_id = null, deadline_at = null, pinned_to = null, pinned_until = null,
         completed_at = case when i.pr_url is null then now() else t.completed_at end,
         error = null,
         pr_url = coalesce(i.pr_url, t.pr_url),
         last_activity_at = now()
    from (select *
            from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::jsonb[], $5::bytea[], $6::text[], $7::text[], $8::bigint[])
              as i(task_id, lease, holder, receipt, receipt_hash, actor, pr_url, place)
           order by i.task_id) i
   where t.task_id = i.task_id and t.lease = i.lease and t.status in ('assigned', 'running')
     -- hidden from the index of what is held, which is tempting while it is small
     and coalesce(t.holder = i.holder, false)
     -- a run on a host has to end, too
     and t.host_agent_id is null
  returning i.place, i.receipt, i.receipt_hash, i.actor,
            -- what is held and not begun is assigned
            case when t.started_at is null then 'assigned' else 'running' end as from_status,
            t.task_id, t.key, t.source, t.priority, t.status, t.execution_mode, t.spec_version, t.lease, t.attempt,
            t.max_retries, t.retry_count, t.review_count, t.timeout_secs, t.run_at, t.assigned_agent_id, t.assigned_host,
            t.created_at, t.assigned_at, t.started_at, t.completed_at, t.last_activity_at, t.pr_url, t.pr_title, t.traceparent
),
receipt as (
  insert into fleet.receipts (task_id, lease, attempt, agent_id, status, body, body_hash)
  select task_id, lease, attempt, split_part(actor, ':', 2), 'completed', receipt, receipt_hash from ended
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, status, from_status, status, actor, lease, attempt, '{"receipt": "completed"}' from ended
)
select t.place, true as applied, t.status as type, t.from_status, t.status as to_status, t.attempt, t.source,
       case when t.traceparent is not null then jsonb_build_object(
         'traceparent', t.traceparent, 'agent_id', t.assigned_agent_id, 'host', t.assigned_host,
         'claimed_secs', extract(epoch from clock_timestamp() - t.assigned_at),
         'started_secs', extract(epoch from clock_timestamp() - t.started_at)) end as trace,
       t.task_id, coalesce(t.key, t.task_id::text) as key, t.source, t.priority, t.status,
       t.execution_mode, null::text as pinned_to, t.lease, t.attempt,
       t.max_retries, t.retry_count, t.review_count, t.timeout_secs, t.run_at, null::timestamptz as deadline_at,
       t.assigned_agent_id, t.assigned_host, null::timestamptz as lease_expires_at,
       t.created_at, t.assigned_at, t.started_at, t.completed_at, t.last_activity_at, t.pr_url, t.pr_title,
       null::text as error, t.traceparent,
       s.title, s.labels, s.capabilities, s.repo, s.issue_url, s.notes,
       t.receipt ->> 'summary' as summary, t.receipt -> 'usage' as usage,
       null::text as waiting_reason,
       s.body
  from ended t
  left join fleet.task_specs s on s.task_id = t.task_id and s.version = t.spec_version
