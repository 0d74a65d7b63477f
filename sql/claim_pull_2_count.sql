-- Purpose: the claim by dequeue, second statement: what the locked sessions hold. Its snapshot is younger than their
--          locks, so the count is exact.
-- Locks:   none.
-- Index:   tasks_held.
-- $1 uuid[]: locked sessions.
select t.holder, count(*) as held
  from fleet.tasks t
 where t.host_agent_id is null and t.holder = any ($1::uuid[])
 group by t.holder
