-- Purpose: whether a lease is still held, and if not, how the task stands.
-- Locks:   none.
-- Index:   tasks_pkey; runs_pkey.
-- $1 uuid: task.
select t.status, t.lease, t.holder, t.execution_mode, r.run_lease, r.next_offset, r.state = 'ended' as run_ended,
       extract(epoch from now() - t.deadline_at)::bigint as overdue_secs
  from fleet.tasks t
  left join lateral (select run_lease, next_offset, state from fleet.runs r
                      where r.task_id = t.task_id order by r.run_lease desc limit 1) r on true
 where t.task_id = $1
