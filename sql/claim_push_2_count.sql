-- Purpose: the claim by dispatch, second statement: the slots taken of each locked host agent, over all replicas. Its
--          snapshot is younger than their locks, so the count is exact. Draining is seen here as well, under the lock:
--          such a host counts as full.
-- Locks:   none.
-- Index:   tasks_held; host_agents_pkey; hosts_pkey.
-- $1 bigint[]: locked host agents.
select host_agent_id, sum(held)::bigint as held
  from (select t.host_agent_id, count(*) as held
          from fleet.tasks t
         where t.host_agent_id = any ($1::bigint[]) and t.holder is not null
         group by t.host_agent_id
        union all
        select ha.host_agent_id, 1000000
          from fleet.host_agents ha
          join fleet.hosts h on h.host_id = ha.host_id
         where ha.host_agent_id = any ($1::bigint[]) and h.drained_at is not null) s
 group by host_agent_id
