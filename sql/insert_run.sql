-- Purpose: a run is about to start: recorded before anything is done on the host. Fenced by task, lease and session.
-- Locks:   the inserted row.
-- Index:   tasks_pkey; runs_pkey.
-- $1 uuid: task; $2 bigint: lease; $3 uuid: session; $4 text[]: command; $5 text: prompt_via; $6 text: output;
-- $7 text: work_dir; $8 integer: timeout in seconds.
with cur as materialized (
  select task_id, status, lease, holder, attempt, host_agent_id from fleet.tasks where task_id = $1 for update
)
insert into fleet.runs (task_id, run_lease, attempt, host_agent_id, command, prompt_via, output, work_dir, timeout_secs)
select task_id, lease, attempt, host_agent_id, $4, $5, $6, $7, $8
  from cur
 where lease = $2 and holder = $3 and status = 'assigned' and host_agent_id is not null
-- there already: an earlier try went through unheard of
on conflict (task_id, run_lease) do update set run_lease = excluded.run_lease
returning run_lease
