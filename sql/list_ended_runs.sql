-- Purpose: which of these runs, found on a host, nobody has any more: their task is not held, or held for another run.
--          Not what the database knows nothing of. A run that ended never lives again, so the answer does not age.
-- Locks:   none.
-- Index:   runs_pkey; tasks_pkey.
-- $1 uuid[]: tasks; $2 bigint[]: the run_lease of each.
select r.task_id, r.run_lease
  from unnest($1::uuid[], $2::bigint[]) as found(task_id, run_lease)
  join fleet.runs r on r.task_id = found.task_id and r.run_lease = found.run_lease
  join fleet.tasks t on t.task_id = r.task_id
 where r.state = 'ended' or t.holder is null
    or exists (select 1 from fleet.runs newer where newer.task_id = r.task_id and newer.run_lease > r.run_lease)
