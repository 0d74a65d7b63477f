-- Purpose: the claim by dispatch, second statement: the slots taken of each locked host agent, over all replicas. Its
--          snapshot is younger than their locks, so the count is exact.
-- Locks:   none.
-- Index:   tasks_held.
-- $1 bigint[]: locked host agents.
select t.host_agent_id, count(*) as held
  from fleet.tasks t
 where t.host_agent_id = any ($1::bigint[]) and t.holder is not null
 group by t.host_agent_id
