-- Purpose: the claim by dequeue, last statement: takes each task for its one session, and shows it
--          as sql/get_tasks.sql does, but for when the lease expires: who has locked the session knows that. Whoever locks
--          the row first has it; what is gone by now is skipped, and only what is returned is taken. An undecided task
--          becomes http_pull.
-- Locks:   tasks by id, FOR UPDATE SKIP LOCKED.
-- Index:   tasks_pkey; agents_pkey; task_specs_pkey; receipts_pkey.
-- $1 uuid[]: tasks; $2 uuid[]: the session of each; $3 text[]: its agent; $4 uuid[]: the request that it answers; $5 bigint[]:
-- the lane in which the task was found, null for a pin: what it requires may have changed since.
with own as materialized (
  select t.task_id, t.status, p.session_id, p.agent_id, p.claim_id
    from unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::bigint[])
           as p(task_id, session_id, agent_id, claim_id, lane_id)
    join fleet.tasks t on t.task_id = p.task_id
    -- under the lock of its session: an agent that drains by now, or has registered anew, takes nothing
    join fleet.agents a on a.agent_id = p.agent_id and a.session_id = p.session_id and a.drained_at is null
   where (t.status = 'created' and t.lane_id = p.lane_id and t.execution_mode in ('http_pull', 'undecided'))
      or (t.status = 'assigned' and t.holder is null and t.execution_mode = 'http_pull' and t.pinned_to = p.agent_id)
   order by t.task_id
     for update of t skip locked
),
claimed as (
  update fleet.tasks t
     set status = 'assigned', execution_mode = 'http_pull', lease = t.lease + 1, attempt = t.attempt + 1,
         holder = o.session_id, host_agent_id = null, assigned_agent_id = o.agent_id, assigned_host = null,
         claim_id = o.claim_id, claimed_version = t.spec_version, assigned_at = now(), started_at = null,
         completed_at = null, deadline_at = now() + make_interval(secs => t.timeout_secs), last_activity_at = now()
    from own o
   where t.task_id = o.task_id
  returning t.*, o.session_id, o.agent_id, o.status as from_status
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, 'claimed', from_status, 'assigned', 'agent:' || agent_id, lease, attempt,
         '{"execution_mode": "http_pull"}'
    from claimed
)
select c.session_id, c.from_status, c.agent_id,
       c.task_id, coalesce(c.key, c.task_id::text) as key, c.source, c.priority, c.status,
       c.execution_mode, c.pinned_to, c.lease, c.attempt,
       c.max_retries, c.retry_count, c.review_count, c.timeout_secs, c.run_at, c.deadline_at,
       c.assigned_agent_id, c.assigned_host,
       null::timestamptz as lease_expires_at,
       c.created_at, c.assigned_at, c.started_at, c.completed_at, c.last_activity_at, c.pr_url, c.pr_title, c.error,
       c.traceparent,
       s.title, s.labels, s.capabilities, s.repo, s.issue_url, s.notes,
       r.body ->> 'summary' as summary, r.body -> 'usage' as usage,
       null::text as waiting_reason,
       s.body
  from claimed c
  left join fleet.task_specs s on s.task_id = c.task_id and s.version = c.claimed_version
 -- who takes it first need not look
 cross join lateral (
   select case when c.lease > 1 then (select e.body from fleet.receipts e
                                       where e.task_id = c.task_id order by e.lease desc limit 1) end as body) r
