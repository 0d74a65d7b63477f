-- Purpose: the runs that a task had before on the host of this one, which is about to start in the same folder: the newest
--          few, newest first. That they have ended here says nothing of their processes.
-- Locks:   none.
-- Index:   runs_pkey; host_agents_pkey.
-- $1 uuid: task; $2 bigint: its new run_lease.
select r.run_lease, r.work_dir
  from fleet.runs own
  join fleet.host_agents o on o.host_agent_id = own.host_agent_id
  join fleet.runs r on r.task_id = own.task_id and r.run_lease < own.run_lease
  join fleet.host_agents h on h.host_agent_id = r.host_agent_id and h.host_id = o.host_id
 where own.task_id = $1 and own.run_lease = $2
 order by r.run_lease desc
 limit 5
