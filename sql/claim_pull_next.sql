-- Purpose: for agents that complete a task and want the next one, both in one statement: ends each lease as
--          sql/complete_leases.sql does, and takes the next tasks of the lane that is first for each agent as claim_pull_3_take
--          does. For sessions for which the process that asks was the last to claim, which have room as it remembers, and
--          whose sign of life is fresh; where something is pinned to the agent, or the task is an issue's, it does nothing.
--          Whom it does not show is to ask by the other statements.
-- Locks:   sessions and agents FOR NO KEY UPDATE SKIP LOCKED, and checks them again under their locks: this statement's
--          snapshot is older than those, so it must not count what a session holds. Then the tasks that end, by id; then
--          those that are taken, FOR UPDATE SKIP LOCKED in the order of the queue; then appends.
-- Index:   sessions_pkey; agents_pkey; tasks_held; tasks_pkey; lanes_pkey; tasks_ready_pull; task_specs_pkey; receipts_pkey.
-- $1 uuid[]: tasks, each once; $2 bigint[]: lease; $3 uuid[]: session, each once; $4 text[]: agent; $5 jsonb[]: receipt;
-- $6 bytea[]: its hash; $7 text[]: the pull request that it names; $8 uuid[]: the request for the next task; $9 bigint[]: the
-- lane that comes first for the agent, $10 smallint[]: in this priority, $11 bigint[]: from which seq on; $12 bigint[]: place in
-- the request, returned; $13 uuid: who claims. Shows the task that has ended of each, and without `type` the one that was taken.
with ask as materialized (
  select i.*, l.expires_at
    from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::jsonb[], $6::bytea[], $7::text[], $8::uuid[], $9::bigint[],
                $10::smallint[], $11::bigint[], $12::bigint[])
      as i(task_id, lease, session_id, agent_id, receipt, receipt_hash, pr_url, claim_id, lane_id, priority, low, place)
   -- one by one: a plan from when there were few agents would read all of them
   cross join lateral (
     select s.last_heartbeat_at + s.ttl as expires_at
       from fleet.sessions s
       join fleet.agents a on a.agent_id = i.agent_id and a.session_id = s.session_id
      where s.session_id = i.session_id and s.kind = 'agent' and coalesce(s.ended_at, 'infinity') = 'infinity'
        and s.claimer = $13::uuid and s.last_heartbeat_at >= now() - s.ttl / 4 and a.drained_at is null
        for no key update of s, a skip locked) l
   where i.agent_id not in (select p.pinned_to from fleet.tasks p
                             where p.host_agent_id is null and p.holder is null and p.pinned_to is not null)
),
ended as (
  update fleet.tasks t
     set status = case when i.pr_url is null then 'completed' else 'review_pending' end,
         holder = null, host_agent_id = null, claim_id = null, deadline_at = null, pinned_to = null, pinned_until = null,
         completed_at = case when i.pr_url is null then now() else t.completed_at end,
         error = null,
         pr_url = coalesce(i.pr_url, t.pr_url),
         last_activity_at = now()
    from (select * from ask order by task_id) i
   where t.task_id = i.task_id and t.lease = i.lease and t.status in ('assigned', 'running')
     -- hidden from the index of what is held, which is tempting while it is small
     and coalesce(t.holder = i.session_id, false)
     and t.host_agent_id is null and t.source <> 'forgejo'
  returning i.place, i.session_id, i.agent_id, i.claim_id, i.lane_id, i.priority as next_priority, i.low, i.expires_at,
            i.receipt, i.receipt_hash,
            -- what is held and not begun is assigned
            case when t.started_at is null then 'assigned' else 'running' end as from_status,
            t.task_id, t.key, t.source, t.priority, t.status, t.execution_mode, t.spec_version, t.lease, t.attempt,
            t.max_retries, t.retry_count, t.review_count, t.timeout_secs, t.run_at, t.assigned_agent_id, t.assigned_host,
            t.created_at, t.assigned_at, t.started_at, t.completed_at, t.last_activity_at, t.pr_url, t.pr_title, t.traceparent
),
ready as materialized (
  select p.lane_id, p.priority,
         array(select r.task_id
                 from fleet.tasks r
                where r.lane_id = p.lane_id and r.priority = p.priority and r.seq >= p.low
                  and r.status = 'created' and r.execution_mode in ('http_pull', 'undecided')
                order by r.seq
                limit p.wanted
                  for update skip locked) as tasks
    -- one row each, or an agent would get one task of each: the marks may have moved between one asker and the next
    from (select lane_id, next_priority as priority, min(low) as low, count(*) as wanted from ended group by 1, 2) p
    join fleet.lanes l on l.lane_id = p.lane_id and l.paused_at is null
),
own as materialized (
  select r.tasks[e.turn] as task_id, e.place, e.session_id, e.agent_id, e.claim_id, e.expires_at
    from (select place, session_id, agent_id, claim_id, expires_at, lane_id, next_priority,
                 row_number() over (partition by lane_id, next_priority order by place) as turn
            from ended) e
    join ready r on r.lane_id = e.lane_id and r.priority = e.next_priority
   where e.turn <= cardinality(r.tasks)
),
claimed as (
  update fleet.tasks t
     set status = 'assigned', execution_mode = 'http_pull', lease = t.lease + 1, attempt = t.attempt + 1,
         holder = o.session_id, host_agent_id = null, assigned_agent_id = o.agent_id, assigned_host = null,
         claim_id = o.claim_id, claimed_version = t.spec_version, assigned_at = now(), started_at = null,
         completed_at = null, deadline_at = now() + make_interval(secs => t.timeout_secs), last_activity_at = now()
    from own o
   where t.task_id = o.task_id
  returning t.*, o.place, o.agent_id, o.expires_at
),
receipt as (
  insert into fleet.receipts (task_id, lease, attempt, agent_id, status, body, body_hash)
  select task_id, lease, attempt, agent_id, 'completed', receipt, receipt_hash from ended
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, status, from_status, status, 'agent:' || agent_id, lease, attempt, '{"receipt": "completed"}'::jsonb from ended
  union all
  select task_id, 'claimed', 'created', 'assigned', 'agent:' || agent_id, lease, attempt, '{"execution_mode": "http_pull"}'
    from claimed
)
select t.place, t.status as type, t.from_status, t.status as to_status, null::bigint as seq,
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
union all
select c.place, null, 'created', 'assigned', c.seq, null,
       c.task_id, coalesce(c.key, c.task_id::text), c.source, c.priority, c.status,
       c.execution_mode, c.pinned_to, c.lease, c.attempt,
       c.max_retries, c.retry_count, c.review_count, c.timeout_secs, c.run_at, c.deadline_at,
       c.assigned_agent_id, c.assigned_host, c.expires_at,
       c.created_at, c.assigned_at, c.started_at, c.completed_at, c.last_activity_at, c.pr_url, c.pr_title, c.error,
       c.traceparent,
       s.title, s.labels, s.capabilities, s.repo, s.issue_url, s.notes,
       r.body ->> 'summary', r.body -> 'usage', null, s.body
  from claimed c
  left join fleet.task_specs s on s.task_id = c.task_id and s.version = c.claimed_version
 -- who takes it first need not look
 cross join lateral (
   select case when c.lease > 1 then (select e.body from fleet.receipts e
                                       where e.task_id = c.task_id order by e.lease desc limit 1) end as body) r
