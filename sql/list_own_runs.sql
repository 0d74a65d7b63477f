-- Purpose: what a replica holds by its session, with what is known of each run. What of it the replica does not execute is
--          to be followed on or given back.
-- Locks:   none.
-- Index:   tasks_held; runs_pkey.
-- $1 uuid: session.
select t.task_id, t.lease, t.host_agent_id, r.run_lease, r.output, r.work_dir, r.timeout_secs, r.next_offset,
       r.started_at is not null as started
  from fleet.tasks t
  left join lateral (
    select * from fleet.runs r
     where r.task_id = t.task_id and r.state <> 'ended'
     order by r.run_lease desc
     limit 1) r on true
 where t.host_agent_id is not null and t.holder = $1
 order by t.task_id
