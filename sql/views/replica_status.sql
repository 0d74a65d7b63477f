-- Purpose: which coordinators there are, whether they live, and what each does.
-- Index:   sessions_pkey; replica_hosts_pkey; tasks_held.
create or replace view fleet.replica_status as
with held as materialized (
  select t.holder, count(*) as runs from fleet.tasks t
   where t.holder is not null and t.host_agent_id is not null
   group by t.holder
),
host as materialized (
  select session_id, count(*) as hosts, count(*) filter (where online) as hosts_online
    from fleet.replica_hosts group by session_id
),
backend as materialized (
  select substring(application_name from 13) as replica_id, count(*) as connections
    from pg_stat_activity
   where datname = current_database() and application_name like 'agent-fleet/%'
   group by 1
)
select r.replica_id,
       case when s.ended_at is not null then 'ended'
            when s.last_heartbeat_at + s.ttl < now() then 'silent'
            else 'live' end as status,
       r.hostname, r.version, s.started_at, now() - s.last_heartbeat_at as silence, s.ttl as lost_after,
       case when s.ended_at is null then now() - s.steady_since end as steady_for, s.ended_at, s.end_reason,
       coalesce(h.runs, 0) as runs, coalesce(o.hosts, 0) as hosts, coalesce(o.hosts_online, 0) as hosts_online,
       r.hosts_listed_at, coalesce(b.connections, 0) as connections
  from fleet.replicas r
  join fleet.sessions s on s.session_id = r.session_id
  left join held h on h.holder = r.session_id
  left join host o on o.session_id = r.session_id
  left join backend b on b.replica_id = r.replica_id;

comment on view fleet.replica_status is 'Which coordinators there are, whether they live, and what each does.';
comment on column fleet.replica_status.replica_id is 'The replica.';
comment on column fleet.replica_status.status is 'live; silent (past its time, and not yet declared dead); ended.';
comment on column fleet.replica_status.hostname is 'Where it runs.';
comment on column fleet.replica_status.version is 'The version of agent-fleet.';
comment on column fleet.replica_status.started_at is 'When this boot of it began.';
comment on column fleet.replica_status.silence is 'Since its last heartbeat.';
comment on column fleet.replica_status.lost_after is 'Silent this long, it is dead.';
comment on column fleet.replica_status.steady_for is 'Since when it has beaten without a gap; it declares others dead only when this is long enough.';
comment on column fleet.replica_status.ended_at is 'When this boot ended.';
comment on column fleet.replica_status.end_reason is 'Why.';
comment on column fleet.replica_status.runs is 'How many runs on hosts it follows.';
comment on column fleet.replica_status.hosts is 'How many hosts its configuration lists.';
comment on column fleet.replica_status.hosts_online is 'How many of them it reaches.';
comment on column fleet.replica_status.hosts_listed_at is 'When this boot said which hosts it knows.';
comment on column fleet.replica_status.connections is 'How many connections to the database bear its name; a pooler may hide it.';
