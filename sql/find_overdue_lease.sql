-- Purpose: of the leases that sql/list_expired_leases.sql and sql/list_lost_leases.sql should have named ten seconds ago,
--          one: where they name none, somebody has locked its task.
-- Locks:   none.
-- Index:   tasks_due; tasks_held; sessions_pkey.
-- $1 double precision: grace for runs on hosts, in seconds.
(select task_id
   from fleet.tasks
  where due_at is not null and due_at <= now() - interval '10 s'
    -- hidden from the index of what is held, as there
    and num_nonnulls(holder) = 1
    and (host_agent_id is null or deadline_at <= now() - interval '10 s' - make_interval(secs => $1))
  order by due_at
  limit 1)
union all
(select t.task_id
   from fleet.tasks t
   join fleet.sessions s on s.session_id = t.holder
  where t.holder is not null and t.host_agent_id is null and s.ended_at <= now() - interval '10 s'
  limit 1)
limit 1
