-- Purpose: a page of agents by id, with what they hold. A filter that is null is no filter.
-- Locks:   none.
-- Index:   agents_pkey; sessions_pkey; tasks_held.
-- $1 text: one agent_id; $2 text: status; $3 text: capability; $4 text: only ids above; $5 bigint: how many.
select *
  from (select a.agent_id, a.agent_type, a.hostname, a.capabilities, a.max_concurrency, a.metadata, a.registered_at,
               s.last_heartbeat_at,
               case when s.ended_at is not null then 'offline'
                    when a.drained_at is not null then 'draining'
                    else 'online' end as status,
               (select count(*) from fleet.tasks t
                 where t.host_agent_id is null and t.holder = a.session_id) as leased
          from fleet.agents a
          join fleet.sessions s on s.session_id = a.session_id
         where ($1::text is null or a.agent_id = $1)
           and ($3::text is null or $3 = any (a.capabilities))
           and ($4::text is null or a.agent_id > $4)) x
 where $2::text is null or x.status = $2
 order by x.agent_id
 limit $5::bigint
