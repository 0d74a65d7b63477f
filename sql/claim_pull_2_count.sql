-- Purpose: the claim by dequeue, second statement: what the locked sessions hold. Its snapshot is younger than their
--          locks, so the count is exact. Draining is seen here as well, under the lock: such an agent counts as full.
-- Locks:   none.
-- Index:   tasks_held; sessions_pkey; agents_pkey.
-- $1 uuid[]: locked sessions.
select holder, sum(held)::bigint as held
  from (select t.holder, count(*) as held
          from fleet.tasks t
         where t.host_agent_id is null and t.holder = any ($1::uuid[])
         group by t.holder
        union all
        select s.session_id, 1000000
          from fleet.sessions s
          join fleet.agents a on a.agent_id = s.subject
         where s.session_id = any ($1::uuid[]) and a.drained_at is not null) h
 group by holder
