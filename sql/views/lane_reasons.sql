-- Purpose: why ready tasks of a lane wait, by mode: the rule of fleet.waiting_reason, for all lanes at once. Who offers
--          what is read once and not for each lane; a test holds the two rules together.
-- Index:   sessions_live; lanes, agents and hosts are few.
create or replace view fleet.lane_reasons as
with pull as materialized (
  select distinct a.capabilities
    from fleet.agents a
    join fleet.sessions s on s.session_id = a.session_id
   where s.ended_at is null
),
push as materialized (
  select k.capabilities, bool_or(k.online) as online,
         bool_or(k.online and (k.parked_until is null or k.parked_until <= now())) as free
    from fleet.known_host_agents(interval '0') k
   group by k.capabilities
),
lane as materialized (
  select l.lane_id, l.capabilities, l.paused_at is not null as paused,
         exists (select 1 from pull where l.capabilities <@ pull.capabilities) as pulled, p.online, p.free
    from fleet.lanes l
   cross join lateral (select bool_or(push.online) as online, bool_or(push.free) as free
                         from push where l.capabilities <@ push.capabilities) p
)
select l.lane_id, l.capabilities, m.execution_mode,
       case when l.paused then 'paused'
            when m.execution_mode <> 'ssh_cli' and l.pulled then 'no_idle_agent'
            when m.execution_mode = 'http_pull' or l.online is null then 'no_capable_agent'
            when not l.online then 'host_offline'
            when not l.free then 'quota'
            else 'no_idle_agent' end as waiting_reason
  from lane l
 cross join (values ('undecided'), ('http_pull'), ('ssh_cli')) m(execution_mode);

comment on view fleet.lane_reasons is 'Why ready tasks of each lane wait, by mode, whether or not there are any now.';
comment on column fleet.lane_reasons.lane_id is 'The lane.';
comment on column fleet.lane_reasons.capabilities is 'What tasks of the lane require.';
comment on column fleet.lane_reasons.execution_mode is 'undecided, ssh_cli or http_pull.';
comment on column fleet.lane_reasons.waiting_reason is 'The word that the API has for it.';
