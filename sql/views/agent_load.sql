-- Purpose: how busy each agent is, and whether it is heard of.
-- Index:   tasks_held; sessions_pkey.
create or replace view fleet.agent_load as
with held as materialized (
  select t.holder, count(*) as leased, min(t.assigned_at) as oldest_at
    from fleet.tasks t
   where t.holder is not null and t.host_agent_id is null
   group by t.holder
),
pinned as materialized (
  select t.pinned_to, count(*) as pinned
    from fleet.tasks t
   where t.pinned_to is not null and t.holder is null and t.execution_mode = 'http_pull'
   group by t.pinned_to
)
select a.agent_id, a.agent_type, a.hostname,
       case when s.ended_at is not null then 'offline'
            when a.drained_at is not null then 'draining'
            else 'online' end as status,
       a.capabilities, a.max_concurrency as slots, coalesce(h.leased, 0) as leased,
       case when s.ended_at is null and a.drained_at is null
            then greatest(a.max_concurrency - coalesce(h.leased, 0), 0) else 0 end as free,
       coalesce(p.pinned, 0) as pinned, now() - h.oldest_at as oldest_lease_age,
       now() - s.last_heartbeat_at as silence, s.ttl as lost_after, s.end_reason, a.registered_at
  from fleet.agents a
  join fleet.sessions s on s.session_id = a.session_id
  left join held h on h.holder = a.session_id
  left join pinned p on p.pinned_to = a.agent_id;

comment on view fleet.agent_load is 'How busy each agent is, and whether it is heard of.';
comment on column fleet.agent_load.agent_id is 'The agent.';
comment on column fleet.agent_load.agent_type is 'What kind of agent it says it is.';
comment on column fleet.agent_load.hostname is 'Where it says it runs.';
comment on column fleet.agent_load.status is 'online, draining or offline.';
comment on column fleet.agent_load.capabilities is 'What it offers.';
comment on column fleet.agent_load.slots is 'How many tasks it may hold at once.';
comment on column fleet.agent_load.leased is 'How many it holds.';
comment on column fleet.agent_load.free is 'How many more it could take now.';
comment on column fleet.agent_load.pinned is 'How many tasks are reserved for it and not taken yet.';
comment on column fleet.agent_load.oldest_lease_age is 'Since it took the oldest that it still holds.';
comment on column fleet.agent_load.silence is 'Since its last call.';
comment on column fleet.agent_load.lost_after is 'Silent this long, it is lost.';
comment on column fleet.agent_load.end_reason is 'Why its session ended.';
comment on column fleet.agent_load.registered_at is 'When it registered first.';
