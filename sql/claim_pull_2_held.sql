-- Purpose: the claim by dequeue, second statement: what the locked sessions hold, and under which request they got it.
--          Its snapshot is younger than their locks, so it is exact. Asked only for sessions that another process has
--          claimed for since this one did.
-- Locks:   none.
-- Index:   tasks_held.
-- $1 uuid[]: locked sessions.
select t.holder, t.task_id, t.lease, t.claim_id, t.of_issue
  from unnest($1::uuid[]) as s(session_id)
 cross join lateral (
   select t.holder, t.task_id, t.lease, t.claim_id, t.source = 'forgejo' as of_issue
     from fleet.tasks t
    where t.host_agent_id is null and t.holder = s.session_id
   -- session by session: a plan from when nothing was held would read all that has been
   offset 0) t
