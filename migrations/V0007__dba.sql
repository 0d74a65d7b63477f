-- What the DBA's views and the retention need. The views themselves are in sql/views/, see README.md.

-- Which sets of views and functions (sql/views/, sql/functions/) have been applied, by checksum. The newest row is in force;
-- a program whose own checksum stands here is that old or older, and leaves them alone.
create table fleet.definitions (
  checksum   text        primary key,
  version    text        not null, -- of the program that applied them
  applied_at timestamptz not null default clock_timestamp()
);

-- Tasks in review were in no index, and counting them read the whole table. They join the held ones; their keys are null,
-- so those who look for a holder or a pin never meet them. Locks out writers for as long as one scan of the table takes:
-- 0.4 s for 1,000,000 tasks, measured.
create index tasks_held_or_reviewed on fleet.tasks (host_agent_id, holder, pinned_to)
  where holder is not null or pinned_to is not null or status = 'review_pending';
drop index fleet.tasks_held;
alter index fleet.tasks_held_or_reviewed rename to tasks_held;

-- The event log by time. It is written in that order, so a block range index is enough, and costs its writers nothing.
create index task_events_at on fleet.task_events using brin (at) with (pages_per_range = 32, autosummarize = on);

-- Deliveries and keys by age.
create index webhook_deliveries_received on fleet.webhook_deliveries (received_at);
create index idempotency_keys_created on fleet.idempotency_keys (created_at);

-- The same rule as before, and the same answers. Now hosts are looked at only when no agent could take it, since the views
-- ask for hundreds of lanes at once, and parallel workers may ask.
create or replace function fleet.waiting_reason(status text, execution_mode text, holder uuid, required text[], lane_id bigint)
returns text language sql stable parallel safe as $$
  select case
    when status = 'scheduled' then 'scheduled'
    when status = 'assigned' and holder is null then 'pinned'
    when status <> 'created' then null
    when exists (select 1 from fleet.lanes l
                  where l.lane_id = waiting_reason.lane_id and l.paused_at is not null) then 'paused'
    when waiting_reason.execution_mode <> 'ssh_cli'
         and exists (select 1 from fleet.agents a join fleet.sessions s on s.session_id = a.session_id
                      where s.ended_at is null and required <@ a.capabilities) then 'no_idle_agent'
    when waiting_reason.execution_mode = 'http_pull' then 'no_capable_agent'
    else (select case when bool_or(k.online) is null then 'no_capable_agent'
                      when not bool_or(k.online) then 'host_offline'
                      when not bool_or(k.online and (k.parked_until is null or k.parked_until <= now())) then 'quota'
                      else 'no_idle_agent' end
            from fleet.known_host_agents(interval '0') k
           where required <@ k.capabilities)
  end
$$;
alter function fleet.known_host_agents(interval) parallel safe;
