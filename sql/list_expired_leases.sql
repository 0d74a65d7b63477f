-- Purpose: leases past their deadline. For a run on a host only when its follower, who judges first, is late by more
--          than the grace. Whoever ends them would wait for what somebody has locked, and all others with it: such a task
--          is left out until it is free.
-- Locks:   those tasks, SKIP LOCKED, for this statement only; end_leases is fenced.
-- Index:   tasks_due.
-- $1 double precision: grace for runs on hosts, in seconds; $2 bigint: at most this many.
select task_id, lease, holder
  from fleet.tasks
 where due_at is not null and due_at <= now()
   -- hidden from the index of what is held, which is tempting when nothing is, and has all that has been
   and num_nonnulls(holder) = 1
   and (host_agent_id is null or deadline_at <= now() - make_interval(secs => $1))
 order by due_at
 limit $2
   for update skip locked
