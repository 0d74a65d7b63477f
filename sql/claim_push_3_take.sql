-- Purpose: the claim by dispatch, last statement: takes each task for its one host agent. Whoever locks the row first
--          has it; what is gone by now is skipped, and only what is returned is taken. An undecided task becomes ssh_cli.
-- Locks:   tasks by id, FOR UPDATE SKIP LOCKED.
-- Index:   tasks_pkey; host_agents_pkey.
-- $1 uuid[]: tasks; $2 bigint[]: the host agent of each; $3 uuid: this replica's session; $4 text: actor; $5 bigint[]: the lane in
-- which the task was found, null for a pin: what it requires may have changed since.
with pair as materialized (
  select p.task_id, p.lane_id, ha.host_agent_id, ha.host_id, ha.agent_type
    from unnest($1::uuid[], $2::bigint[], $5::bigint[]) as p(task_id, host_agent_id, lane_id)
    join fleet.host_agents ha on ha.host_agent_id = p.host_agent_id
),
own as materialized (
  select t.task_id, t.status, p.host_agent_id, p.host_id || '/' || p.agent_type as host
    from pair p
    join fleet.tasks t on t.task_id = p.task_id
   where (t.status = 'created' and t.lane_id = p.lane_id and t.execution_mode in ('ssh_cli', 'undecided'))
      or (t.status = 'assigned' and t.holder is null and t.execution_mode = 'ssh_cli'
          and t.pinned_to in (p.host_id, p.host_id || '/' || p.agent_type))
   order by t.task_id
     for update of t skip locked
),
claimed as (
  update fleet.tasks t
     set status = 'assigned', execution_mode = 'ssh_cli', lease = t.lease + 1, attempt = t.attempt + 1,
         holder = $3::uuid, host_agent_id = o.host_agent_id, assigned_agent_id = null, assigned_host = o.host,
         claimed_version = t.spec_version, assigned_at = now(), started_at = null, completed_at = null,
         deadline_at = now() + make_interval(secs => t.timeout_secs), last_activity_at = now()
    from own o
   where t.task_id = o.task_id
  returning t.task_id, t.lease, t.attempt, o.host_agent_id, o.host, o.status as from_status, t.traceparent
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, 'claimed', from_status, 'assigned', $4::text, lease, attempt,
         jsonb_build_object('execution_mode', 'ssh_cli', 'host', host)
    from claimed
)
select task_id, host_agent_id, lease, attempt, from_status, host, traceparent from claimed
