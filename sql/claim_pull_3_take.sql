-- Purpose: the claim by dequeue, last statement: takes each task for its one session. Whoever locks the row first has
--          it; what is gone by now is skipped, and only what is returned is taken. An undecided task becomes http_pull.
-- Locks:   tasks by id, FOR UPDATE SKIP LOCKED; sessions that this transaction has locked before.
-- Index:   tasks_pkey; agents_pkey; sessions_pkey.
-- $1 uuid[]: tasks; $2 uuid[]: the session of each; $3 text[]: its agent; $4 uuid[]: the request that it answers;
-- $5 uuid: who claims; $6 uuid[]: those of the sessions for which another process claimed before.
with pair as materialized (
  select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[]) as p(task_id, session_id, agent_id, claim_id)
),
own as materialized (
  select t.task_id, t.status, p.session_id, p.agent_id, p.claim_id
    from pair p
    join fleet.tasks t on t.task_id = p.task_id
    -- under the lock of its session: an agent that drains by now, or has registered anew, takes nothing
    join fleet.agents a on a.agent_id = p.agent_id and a.session_id = p.session_id and a.drained_at is null
   where (t.status = 'created' and t.execution_mode in ('http_pull', 'undecided'))
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
  returning t.task_id, t.lease, t.attempt, o.session_id, o.agent_id, o.status as from_status
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, 'claimed', from_status, 'assigned', 'agent:' || agent_id, lease, attempt,
         '{"execution_mode": "http_pull"}'
    from claimed
),
claimer as (
  update fleet.sessions s
     set claimer = $5
   where s.session_id = any ($6::uuid[])
)
select task_id, session_id, lease, attempt, from_status, agent_id from claimed
