-- Purpose: the run is known to have started.
-- Locks:   the run.
-- Index:   runs_pkey.
-- $1 uuid: task; $2 bigint: run_lease.
update fleet.runs set state = 'running', started_at = coalesce(started_at, now())
 where task_id = $1 and run_lease = $2 and state = 'starting'
