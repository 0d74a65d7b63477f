-- Purpose: the claim by dequeue, second statement: what is pinned to the locked agents, oldest first. A pin is exempt
--          from the checks of capabilities and pause.
-- Locks:   none; claim_pull_3_take locks.
-- Index:   tasks_held.
-- $1 text[]: agent ids; $2 bigint: how many of each: the pins of an agent that is full must not hide another's.
select c.task_id, c.pinned_to
  from unnest($1::text[]) as a(agent_id)
 cross join lateral (
   select t.task_id, t.pinned_to, t.seq
     from fleet.tasks t
    where t.host_agent_id is null and t.holder is null and t.pinned_to = a.agent_id
      and t.status = 'assigned' and t.execution_mode = 'http_pull'
    order by t.seq
    limit $2::bigint) c
 -- one look, as long as nothing is pinned to anybody
 where exists (select from fleet.tasks p where p.host_agent_id is null and p.holder is null and p.pinned_to is not null)
 order by c.seq
