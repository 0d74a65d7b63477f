-- Functions that statements share.

-- Makes the weekly partitions of the event log and of the output from this week to `ahead` from now. Made first and
-- then ATTACHed, which needs no lock that stops writers. Safe on all replicas at once; a second call changes nothing.
create function fleet.make_partitions(ahead interval) returns integer
language plpgsql set search_path = fleet, pg_temp as $$
declare
  parent text;
  week   timestamptz;
  name   text;
  made   integer := 0;
begin
  perform pg_advisory_xact_lock(hashtextextended('fleet.make_partitions', 0));
  foreach parent in array array['task_events', 'task_logs'] loop
    week := date_trunc('week', now(), 'UTC');
    while week < now() + ahead loop
      name := format('%s_%s', parent, to_char(week at time zone 'UTC', 'IYYY"w"IW'));
      if to_regclass(format('fleet.%I', name)) is null then
        execute format('create table fleet.%I (like fleet.%I including defaults including constraints)', name, parent);
        execute format('alter table fleet.%I attach partition fleet.%I for values from (%L) to (%L)',
                       parent, name, week, week + interval '7 days');
        made := made + 1;
      end if;
      week := week + interval '7 days';
    end loop;
  end loop;
  return made;
end
$$;

select fleet.make_partitions(interval '67 days');

-- The wait before retry number `retry` (from 1): doubles each time, at most an hour, with up to 20 % more at random so
-- that tasks which failed together do not return together.
create function fleet.backoff(base interval, retry integer) returns interval language sql volatile parallel safe as $$
  select least(base * power(2, least(greatest(retry, 1), 20) - 1), greatest(base, interval '1 hour'))
         * (1 + random() * 0.2)
$$;

-- Hosts as the fleet sees them now. A host is listed while a live replica lists it, and for `linger` after the last one
-- that did went away, so that a restart does not make it unknown.
create function fleet.known_host_agents(linger interval)
returns table (host_agent_id bigint, host_id text, agent_type text, capabilities text[],
               online boolean, parked_until timestamptz, drained boolean)
language sql stable as $$
  select ha.host_agent_id, ha.host_id, ha.agent_type, ha.capabilities,
         bool_or(s.ended_at is null and rh.online and not ha.agent_type = any (rh.missing)),
         ha.parked_until, h.drained_at is not null
    from fleet.host_agents ha
    join fleet.hosts h on h.host_id = ha.host_id
    join fleet.replica_hosts rh on rh.host_id = ha.host_id
    join fleet.sessions s on s.session_id = rh.session_id
   where s.ended_at is null or s.ended_at > now() - linger
   group by ha.host_agent_id, h.drained_at
$$;

-- Why a task waits; null unless it does. One place, for the API and for the DBA.
create function fleet.waiting_reason(status text, execution_mode text, holder uuid, required text[], lane_id bigint)
returns text language sql stable as $$
  select case
    when status = 'scheduled' then 'scheduled'
    when status = 'assigned' and holder is null then 'pinned'
    when status <> 'created' then null
    when exists (select 1 from fleet.lanes l
                  where l.lane_id = waiting_reason.lane_id and l.paused_at is not null) then 'paused'
    else (
      with pull as (
        select 1 from fleet.agents a join fleet.sessions s on s.session_id = a.session_id
         where waiting_reason.execution_mode <> 'ssh_cli'
           and s.ended_at is null and required <@ a.capabilities
         limit 1),
      push as (
        select bool_or(k.online) as online,
               bool_or(k.online and (k.parked_until is null or k.parked_until <= now())) as free
          from fleet.known_host_agents(interval '0') k
         where waiting_reason.execution_mode <> 'http_pull' and required <@ k.capabilities)
      select case
        when exists (select 1 from pull) then 'no_idle_agent'
        when push.online is null then 'no_capable_agent'
        when not push.online then 'host_offline'
        when not push.free then 'quota'
        else 'no_idle_agent' end
        from push)
  end
$$;
