-- Purpose: a page of hosts by id, as the fleet sees them: online when any live replica reaches it. A filter that is null is
--          no filter.
-- Locks:   none.
-- Index:   hosts_pkey; replica_hosts_pkey; tasks_held.
-- $1 text: one host_id; $2 text: status; $3 text: only ids above; $4 bigint: how many.
select *
  from (select h.host_id, h.hostname,
               case when not coalesce(p.listed, false) then 'disabled'
                    when not p.online then 'offline'
                    when h.drained_at is not null then 'draining'
                    else 'online' end as status,
               case when not coalesce(p.listed, false) then 'no live replica lists it' else p.reason end as reason,
               p.checked_at, coalesce(p.replicas, '[]') as replicas,
               coalesce((select jsonb_agg(jsonb_build_object(
                                  'agent_type', ha.agent_type, 'capabilities', to_jsonb(ha.capabilities),
                                  'max_concurrency', ha.max_concurrency,
                                  'running', (select count(*) from fleet.tasks t
                                               where t.host_agent_id = ha.host_agent_id and t.holder is not null),
                                  -- by hand for ever, as infinity, which JSON has no word for
                                  'parked_until', case when ha.parked_until > now()
                                                       then least(ha.parked_until, '9999-12-30 00:00:00Z') end,
                                  'parked_reason', case when ha.parked_until > now() then ha.parked_reason end) order by ha.agent_type)
                           from fleet.host_agents ha where ha.host_id = h.host_id), '[]') as agents
          from fleet.hosts h
          left join lateral (
            select true as listed, bool_or(rh.online) as online, max(rh.checked_at) as checked_at,
                   (array_agg(rh.reason order by rh.online desc, rh.checked_at desc nulls last))[1] as reason,
                   jsonb_agg(jsonb_build_object('replica_id', s.subject, 'online', rh.online, 'reason', rh.reason,
                                                'checked_at', rh.checked_at) order by s.subject) as replicas
              from fleet.replica_hosts rh
              join fleet.sessions s on s.session_id = rh.session_id
             where rh.host_id = h.host_id and s.ended_at is null
            having count(*) > 0) p on true
         where ($1::text is null or h.host_id = $1)
           and ($3::text is null or h.host_id > $3)) x
 where $2::text is null or x.status = $2
 order by x.host_id
 limit $4::bigint
