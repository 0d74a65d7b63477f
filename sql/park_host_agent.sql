-- Purpose: a CLI on a host is out of quota or not logged in: nothing is dispatched to it until the moment that it named,
--          else for 15 minutes, doubled each time since its last success, a day at most. What several runs find at once
--          is found once. Fenced by task, lease and session.
-- Locks:   the host agent.
-- Index:   tasks_pkey; host_agents_pkey.
-- $1 uuid: task; $2 bigint: lease; $3 uuid: session; $4 timestamptz: the moment it named, or null; $5 text: reason.
with own as materialized (
  select host_agent_id from fleet.tasks where task_id = $1 and lease = $2 and holder = $3
)
update fleet.host_agents ha
   set parked_until = case
         when $4::timestamptz is not null then least($4::timestamptz, now() + interval '31 days')
         when ha.parked_until > now() then ha.parked_until
         else now() + least(interval '15 minutes' * power(2, least(ha.park_count, 10)), interval '1 day')
       end,
       park_count = ha.park_count + case when ha.parked_until > now() then 0 else 1 end,
       parked_reason = $5
  from own
 where ha.host_agent_id = own.host_agent_id
returning ha.parked_until
