-- Purpose: how busy each CLI on each host is, and whether a live replica reaches it.
-- Index:   tasks_held; replica_hosts_pkey; sessions_pkey.
create or replace view fleet.host_load as
with held as materialized (
  select t.host_agent_id, count(*) as running, min(t.assigned_at) as oldest_at
    from fleet.tasks t
   where t.holder is not null and t.host_agent_id is not null
   group by t.host_agent_id
),
pinned as materialized (
  select t.pinned_to, count(*) as pinned
    from fleet.tasks t
   where t.pinned_to is not null and t.holder is null and t.execution_mode = 'ssh_cli'
   group by t.pinned_to
),
seen as materialized (
  select rh.host_id, bool_or(rh.online) as online, max(rh.checked_at) as checked_at,
         (array_agg(rh.reason order by rh.online desc, rh.checked_at desc nulls last))[1] as reason,
         array_agg(s.subject order by s.subject) filter (where rh.online) as reached_by
    from fleet.replica_hosts rh
    join fleet.sessions s on s.session_id = rh.session_id
   where s.ended_at is null
   group by rh.host_id
)
select h.host_id, ha.agent_type, h.hostname,
       case when n.host_id is null then 'disabled'
            when not n.online then 'offline'
            when h.drained_at is not null then 'draining'
            else 'online' end as status,
       case when n.host_id is null then 'no live replica lists it' else n.reason end as reason,
       ha.capabilities, ha.max_concurrency as slots, coalesce(r.running, 0) as running,
       case when n.online and h.drained_at is null and coalesce(ha.parked_until <= now(), true)
            then greatest(ha.max_concurrency - coalesce(r.running, 0), 0) else 0 end as free,
       coalesce(p.pinned, 0) as pinned, now() - r.oldest_at as oldest_run_age,
       case when ha.parked_until > now() then ha.parked_until end as parked_until,
       case when ha.parked_until > now() then ha.parked_reason end as parked_reason,
       now() - n.checked_at as checked_ago, n.reached_by
  from fleet.hosts h
  left join fleet.host_agents ha on ha.host_id = h.host_id
  left join seen n on n.host_id = h.host_id
  left join held r on r.host_agent_id = ha.host_agent_id
  left join pinned p on p.pinned_to = ha.host_id || '/' || ha.agent_type;

comment on view fleet.host_load is 'How busy each CLI on each host is, and whether it is reached.';
comment on column fleet.host_load.host_id is 'The host.';
comment on column fleet.host_load.agent_type is 'The CLI; null for a host that offers none.';
comment on column fleet.host_load.hostname is 'Its address.';
comment on column fleet.host_load.status is 'online, draining, offline, or disabled (no live replica lists it).';
comment on column fleet.host_load.reason is 'Why it is not online.';
comment on column fleet.host_load.capabilities is 'What the CLI offers.';
comment on column fleet.host_load.slots is 'How many runs of it may go on at once, over all replicas.';
comment on column fleet.host_load.running is 'How many go on.';
comment on column fleet.host_load.free is 'How many more could start now.';
comment on column fleet.host_load.pinned is 'How many tasks are reserved for this CLI of this host and not taken yet; those for the host as a whole are not counted.';
comment on column fleet.host_load.oldest_run_age is 'Since the oldest run that goes on was claimed.';
comment on column fleet.host_load.parked_until is 'Until when it gets no work, after a quota or a login ran out.';
comment on column fleet.host_load.parked_reason is 'Why.';
comment on column fleet.host_load.checked_ago is 'Since a live replica last looked at the host.';
comment on column fleet.host_load.reached_by is 'The live replicas that reach it.';
