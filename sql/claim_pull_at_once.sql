-- Purpose: the claim by dequeue in one statement, for what a hint told of: one task for one session, for which the process
--          that asks was the last to claim and which has room, as it remembers. Reads as claim_pull_2_ready does and takes
--          as claim_pull_3_take does; where something is pinned to the agent it takes nothing. Who goes without is to ask by
--          the statements 1 to 4.
-- Locks:   the session and the agent FOR NO KEY UPDATE SKIP LOCKED, and checks them again under their locks: this statement's
--          snapshot is older than those, so it must not count what the session holds. Then the task, FOR UPDATE SKIP LOCKED.
-- Index:   tasks_ready_pull; lanes_pkey; tasks_held; sessions_pkey; agents_pkey; tasks_pkey; task_specs_pkey; receipts_pkey.
-- $1 bigint[]: lanes that the agent satisfies, with $2 smallint[]: a priority, $3 bigint[]: from which seq on; $4 uuid: the
-- session; $5 text: its agent; $6 uuid: the request that is answered; $7 uuid: who claims. Shows two tasks at most: in the first
-- columns what was found, in the others what was taken of it.
with ready as materialized (
  select p.lane_id, p.priority, t.seq, t.task_id
    from unnest($1::bigint[], $2::smallint[], $3::bigint[]) as p(lane_id, priority, low)
    join fleet.lanes l on l.lane_id = p.lane_id
   cross join lateral (
     select r.task_id, r.seq
       from fleet.tasks r
      where r.lane_id = p.lane_id and r.priority = p.priority and r.seq >= p.low
        and r.status = 'created' and r.execution_mode in ('http_pull', 'undecided')
      order by r.seq
      limit 2) t
   where l.paused_at is null
   order by p.priority desc, t.seq
   -- the second says that the first was not all
   limit 2
),
locked as materialized (
  select s.session_id, a.agent_id, s.last_heartbeat_at + s.ttl as expires_at
    from fleet.sessions s
    join fleet.agents a on a.session_id = s.session_id
   where s.session_id = $4::uuid and s.kind = 'agent' and coalesce(s.ended_at, 'infinity') = 'infinity'
     and s.claimer = $7::uuid and a.agent_id = $5::text and a.drained_at is null
     and not exists (select from fleet.tasks p
                      where p.host_agent_id is null and p.holder is null and p.pinned_to = $5::text)
     for no key update of s, a skip locked
),
own as materialized (
  select t.task_id, l.session_id, l.agent_id, l.expires_at
    from (select r.task_id, r.lane_id from ready r order by r.priority desc, r.seq limit 1) f
   cross join locked l
    join fleet.tasks t on t.task_id = f.task_id
   -- hidden from the index of what is ready: by statistics of a moment with little of it, that is as good to read as this one row
   where coalesce(t.status, '') = 'created' and t.lane_id = f.lane_id and t.execution_mode in ('http_pull', 'undecided')
     for update of t skip locked
),
claimed as (
  update fleet.tasks t
     set status = 'assigned', execution_mode = 'http_pull', lease = t.lease + 1, attempt = t.attempt + 1,
         holder = o.session_id, host_agent_id = null, assigned_agent_id = o.agent_id, assigned_host = null,
         claim_id = $6::uuid, claimed_version = t.spec_version, assigned_at = now(), started_at = null,
         completed_at = null, deadline_at = now() + make_interval(secs => t.timeout_secs), last_activity_at = now()
    from own o
   where t.task_id = o.task_id
  returning t.*, o.agent_id, o.expires_at
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, 'claimed', 'created', 'assigned', 'agent:' || agent_id, lease, attempt,
         '{"execution_mode": "http_pull"}'
    from claimed
)
select 1 as set_no, f.lane_id, f.priority, f.seq, f.task_id, 'created' as from_status, c.agent_id,
       c.task_id, coalesce(c.key, c.task_id::text) as key, c.source, c.priority, c.status,
       c.execution_mode, c.pinned_to, c.lease, c.attempt,
       c.max_retries, c.retry_count, c.review_count, c.timeout_secs, c.run_at, c.deadline_at,
       c.assigned_agent_id, c.assigned_host,
       c.expires_at as lease_expires_at,
       c.created_at, c.assigned_at, c.started_at, c.completed_at, c.last_activity_at, c.pr_url, c.pr_title, c.error,
       c.traceparent,
       s.title, s.labels, s.capabilities, s.repo, s.issue_url, s.notes,
       r.body ->> 'summary' as summary, r.body -> 'usage' as usage,
       null::text as waiting_reason,
       s.body
  from ready f
  left join claimed c on c.task_id = f.task_id
  left join fleet.task_specs s on s.task_id = c.task_id and s.version = c.claimed_version
 -- who takes it first need not look
 cross join lateral (
   select case when c.lease > 1 then (select e.body from fleet.receipts e
                                       where e.task_id = c.task_id order by e.lease desc limit 1) end as body) r
 order by f.priority desc, f.seq
