-- Purpose: runs on hosts whose replica's session has ended are taken over: the lease grows, so that the old replica is
--          fenced off even if it was only cut off; attempt and run stay the same.
-- Locks:   those tasks, by id, FOR UPDATE SKIP LOCKED; then appends.
-- Index:   tasks_held; sessions_pkey; runs_pkey.
-- $1 bigint[]: host agents that this replica reaches; $2 uuid: its session; $3 text: actor; $4 bigint: at most this many.
with orphan as materialized (
  select t.task_id
    from fleet.tasks t
    join fleet.sessions s on s.session_id = t.holder
   where t.holder is not null and t.host_agent_id = any ($1::bigint[]) and s.ended_at is not null
     and exists (select 1 from fleet.sessions me where me.session_id = $2 and me.ended_at is null)
   order by t.task_id
   limit $4
     for update of t skip locked
),
taken as (
  update fleet.tasks t
     set lease = t.lease + 1, holder = $2
    from orphan
   where t.task_id = orphan.task_id
  returning t.task_id, t.lease, t.attempt, t.host_agent_id, t.assigned_host, t.traceparent
),
event as (
  insert into fleet.task_events (task_id, type, actor, lease, attempt)
  select task_id, 'taken_over', $3::text, lease, attempt from taken
)
select taken.task_id, taken.lease, taken.attempt, taken.host_agent_id, r.run_lease, r.output, r.work_dir, r.timeout_secs, r.next_offset,
       r.started_at is not null as started, taken.assigned_host as host, taken.traceparent
  from taken
  left join lateral (
    select * from fleet.runs r
     where r.task_id = taken.task_id and r.state <> 'ended'
     order by r.run_lease desc
     limit 1) r on true
