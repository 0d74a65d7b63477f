-- Purpose: ends leases: the only way a claim ends but by cancel and retry, and by sql/complete_leases.sql, which does for
--          the commonest case what this does. One rule for receipts, timeouts, lost holders,
--          releases and undone claims: what the outcome makes of the task, and whether it counts as an attempt.
--          Fenced by task, lease and session. A task that is no longer assigned or running (the forge moved it) keeps
--          its status; only the lease ends. A task that a receipt has ended for good is shown, as sql/get_tasks.sql does;
--          of others the columns from `task_id` on are null.
-- Locks:   tasks by id, FOR UPDATE; then appends.
-- Index:   tasks_pkey; runs_pkey; task_specs_pkey.
-- $1 uuid[]: tasks, each once; $2 bigint[]: lease; $3 uuid[]: session; $4 text[]: outcome, one of completed, failed,
-- timed_out, lost, released, undone; $5 text[]: error or reason; $6 integer[]: wait in seconds; $7 jsonb[]: receipt;
-- $8 bytea[]: its hash; $9 text[]: actor (agent_id or host/agent of a receipt behind its first colon);
-- $10 text[]: the pull request that the receipt names; $11 bigint[]: place in the request, returned; $12 double precision:
-- backoff before the first retry, in seconds.
with input as materialized (
  select *
    from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::integer[], $7::jsonb[], $8::bytea[],
                $9::text[], $10::text[], $11::bigint[])
      as i(task_id, lease, holder, outcome, reason, wait_secs, receipt, receipt_hash, actor, pr_url, place)
),
cur as materialized (
  select i.place, i.task_id, i.lease, i.holder, i.reason, coalesce(i.wait_secs, 0) as wait_secs, i.receipt,
         i.receipt_hash, i.actor, i.pr_url,
         coalesce(t.lease = i.lease and t.holder = i.holder, false)
         -- who undoes an agent's claim has not told it; another replica, asked again, may have
         and not (i.outcome = 'undone' and t.host_agent_id is null
                  and (t.status = 'running' or t.status = 'assigned' and t.last_activity_at > t.assigned_at)) as held,
         t.status, t.attempt, t.retry_count, t.refund_count, t.max_retries, t.pinned_to, t.source,
         -- at most five refunds; after that giving back counts as losing
         case when i.outcome = 'released' and t.refund_count >= 5 then 'lost' else i.outcome end as outcome,
         -- what the trace of a traced task is told of this attempt
         case when t.traceparent is not null then jsonb_build_object(
           'traceparent', t.traceparent, 'agent_id', t.assigned_agent_id, 'host', t.assigned_host,
           'claimed_secs', extract(epoch from clock_timestamp() - t.assigned_at),
           'started_secs', extract(epoch from clock_timestamp() - t.started_at)) end as trace
    from input i
    join fleet.tasks t on t.task_id = i.task_id
   order by t.task_id
     for update of t
),
verdict as materialized (
  select f.*,
         case
           when f.status not in ('assigned', 'running') then 'lease_ended'
           when f.outcome = 'completed' and f.pr_url is not null then 'review_pending'
           else f.outcome
         end as type,
         case
           when f.status not in ('assigned', 'running') then f.status
           when f.outcome = 'completed' then case when f.pr_url is null then 'completed' else 'review_pending' end
           when f.outcome = 'undone' then case when f.pinned_to is null then 'created' else 'assigned' end
           when f.outcome = 'released' then
             case when f.wait_secs > 0 or f.refund_count >= 1 then 'scheduled' else 'created' end
           when f.retry_count < f.max_retries then 'scheduled'
           when f.outcome = 'lost' then 'agent_lost'
           else 'failed'
         end as to_status
    from cur f
   where f.held
),
ended as (
  update fleet.tasks t
     set status = v.to_status,
         holder = null, host_agent_id = null, claim_id = null, deadline_at = null,
         pinned_to = case when v.type = 'undone' then t.pinned_to end,
         pinned_until = case when v.type = 'undone' then t.pinned_until end,
         execution_mode = case when v.to_status in ('created', 'scheduled') then t.created_mode else t.execution_mode end,
         attempt = t.attempt - case when v.type in ('released', 'undone') then 1 else 0 end,
         refund_count = t.refund_count + case when v.type = 'released' then 1 else 0 end,
         retry_count = t.retry_count
                       + case when v.type in ('failed', 'timed_out', 'lost') and v.to_status = 'scheduled' then 1 else 0 end,
         run_at = case when v.to_status = 'scheduled' then
                    now() + greatest(make_interval(secs => v.wait_secs),
                                     case when v.type = 'released' and v.wait_secs > 0 then interval '0'
                                          when v.type = 'released' then
                                            fleet.backoff(make_interval(secs => $12), v.refund_count)
                                          else fleet.backoff(make_interval(secs => $12), v.retry_count + 1) end)
                  end,
         ready_at = case when v.to_status = 'created' then now() else t.ready_at end,
         completed_at = case when v.type <> 'lease_ended' and v.to_status in ('completed', 'failed', 'agent_lost')
                             then now() else t.completed_at end,
         error = case when v.type in ('failed', 'timed_out', 'lost') then v.reason
                      when v.type in ('completed', 'review_pending') then null
                      else t.error end,
         pr_url = coalesce(v.pr_url, t.pr_url),
         last_activity_at = now()
    from verdict v
   where t.task_id = v.task_id
  returning t.*
),
run as (
  update fleet.runs r
     set state = 'ended', ended_at = now()
    from verdict v
   where r.task_id = v.task_id and r.state <> 'ended'
),
receipt as (
  insert into fleet.receipts (task_id, lease, attempt, agent_id, status, body, body_hash)
  select task_id, lease, attempt, split_part(actor, ':', 2), receipt ->> 'status', receipt, receipt_hash
    from verdict
   where receipt is not null
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, type, status, case when type <> 'lease_ended' then to_status end, actor, lease, attempt,
         jsonb_strip_nulls(jsonb_build_object('reason', reason, 'receipt', receipt ->> 'status'))
    from verdict
)
select c.place, v.place is not null as applied, v.type, c.status as from_status, v.to_status, c.attempt, c.source, c.trace,
       t.task_id, coalesce(t.key, t.task_id::text) as key, t.source, t.priority, t.status,
       t.execution_mode, t.pinned_to, t.lease, t.attempt,
       t.max_retries, t.retry_count, t.review_count, t.timeout_secs, t.run_at, t.deadline_at,
       t.assigned_agent_id, t.assigned_host, null::timestamptz as lease_expires_at,
       t.created_at, t.assigned_at, t.started_at, t.completed_at, t.last_activity_at, t.pr_url, t.pr_title, t.error,
       t.traceparent,
       s.title, s.labels, s.capabilities, s.repo, s.issue_url, s.notes,
       v.receipt ->> 'summary' as summary, v.receipt -> 'usage' as usage,
       null::text as waiting_reason,
       s.body
  from cur c
  left join verdict v on v.place = c.place
  left join ended t on t.task_id = v.task_id and v.receipt is not null
       and v.to_status not in ('scheduled', 'created', 'assigned')
  left join fleet.task_specs s on s.task_id = t.task_id and s.version = t.spec_version
