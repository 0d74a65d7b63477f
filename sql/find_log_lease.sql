-- Purpose: which lease's output to show, and whether more can come.
-- Locks:   none.
-- Index:   tasks_pkey; task_logs_pkey; runs_pkey.
-- $1 uuid: task; $2 bigint: null or the lease asked for.
select l.lease,
       not exists (select 1 from fleet.runs r where r.task_id = $1 and r.run_lease = l.lease and r.state <> 'ended')
         and not (t.holder is not null and t.lease = l.lease) as done
  from fleet.tasks t
 cross join lateral (
   select coalesce($2::bigint, (select max(g.lease) from fleet.task_logs g where g.task_id = $1), t.lease) as lease) l
 where t.task_id = $1
