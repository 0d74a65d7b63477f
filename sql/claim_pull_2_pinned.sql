-- Purpose: the claim by dequeue, second statement: what is pinned to the locked agents, oldest first. A pin is exempt
--          from the checks of capabilities and pause.
-- Locks:   none; claim_pull_3_take locks.
-- Index:   tasks_held.
-- $1 text[]: agent ids; $2 bigint: how many.
select t.task_id, t.pinned_to
  from fleet.tasks t
 where t.host_agent_id is null and t.holder is null and t.pinned_to = any ($1::text[])
   and t.status = 'assigned' and t.execution_mode = 'http_pull'
 order by t.seq
 limit $2::bigint
