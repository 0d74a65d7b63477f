-- Purpose: the scheduler's look: which kinds of work are due, and in how many seconds something will be next (null: not within
--          the time for which it sleeps at most). One statement, so that idling costs one.
-- Locks:   none.
-- Index:   tasks_due; tasks_ready_pull, tasks_ready_push (lane_id is null is their first key).
-- $1 double precision: grace for runs on hosts past their deadline, in seconds.
select exists (select 1 from fleet.tasks
                where due_at is not null and due_at <= now() and status = 'scheduled') as scheduled,
       exists (select 1 from fleet.tasks
                where due_at is not null and due_at <= now() and status = 'assigned' and holder is null) as pins,
       exists (select 1 from fleet.tasks
                where due_at is not null and due_at <= now()
                  -- hidden from the index of what is held, which is tempting when nothing is, and has all that has been
                  and num_nonnulls(holder) = 1
                  and (host_agent_id is null or deadline_at <= now() - make_interval(secs => $1))) as deadlines,
       exists (select 1 from fleet.tasks
                where lane_id is null and status = 'created' and execution_mode in ('http_pull', 'undecided'))
       or exists (select 1 from fleet.tasks
                   where lane_id is null and status = 'created' and execution_mode in ('ssh_cli', 'undecided')) as laneless,
       -- bounded, since it would read every deadline of what is done already, until vacuum has been there
       extract(epoch from (select min(due_at) from fleet.tasks
                            where due_at is not null and due_at > now() and due_at < now() + interval '5 s')
                          - now())::double precision as next_secs
