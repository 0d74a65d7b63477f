-- Purpose: leases of agents whose session has ended: lost. Whoever ends them would wait for what somebody has locked, and
--          all others with it: such a task is left out until it is free.
-- Locks:   those tasks, SKIP LOCKED, for this statement only; end_leases is fenced.
-- Index:   tasks_held; sessions_pkey.
-- $1 bigint: at most this many.
select t.task_id, t.lease, t.holder, s.end_reason
  from fleet.tasks t
  join fleet.sessions s on s.session_id = t.holder
 where t.holder is not null and t.host_agent_id is null and s.ended_at is not null
 order by t.task_id
 limit $1
   for update of t skip locked
