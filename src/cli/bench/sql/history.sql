-- Tasks that were done in the last day: :tasks of them, evenly spread, with specs, events and receipts; one in a hundred
-- failed. In the order of time, as a coordinator writes them.
insert into fleet.lanes (capabilities) values (array['agent:past']) on conflict do nothing;
-- A day may have begun in the week before.
do $$
declare
  week timestamptz := date_trunc('week', now() - interval '1 day', 'UTC');
  name text := to_char(week at time zone 'UTC', '"task_events_"IYYY"w"IW');
begin
  if to_regclass(format('fleet.%I', name)) is null then
    execute format('create table fleet.%I partition of fleet.task_events for values from (%L) to (%L)',
                   name, week, week + interval '7 days');
  end if;
end
$$;
create temp table made as
select fleet.uuid_v7() as task_id, i, i % 100 = 0 as failed,
       now() - interval '1 day' + interval '23 hours 50 minutes' * i / :tasks as at,
       random() * interval '1 minute' as waited, interval '1 minute' + random() * interval '8 minutes' as worked
  from generate_series(1, :tasks) as i;
insert into fleet.tasks (task_id, key, source, lane_id, status, execution_mode, lease, attempt, assigned_agent_id, claimed_version,
                         ready_at, created_at, assigned_at, started_at, completed_at, last_activity_at, error)
select task_id, 'past/' || task_id, 'api', (select lane_id from fleet.lanes where capabilities = array['agent:past']),
       case when failed then 'failed' else 'completed' end, 'http_pull', 1, 1, 'agent-' || i % 1000, 1,
       at, at, at + waited, at + waited, at + waited + worked, at + waited + worked, case when failed then 'reason ' || i % 7 end
  from made order by i;
insert into fleet.task_specs (task_id, title, body, labels, capabilities, created_at)
select task_id, 'A task that is done', 'It was for others.', array['agent:past'], array['agent:past'], at from made order by i;
insert into fleet.task_events (task_id, at, type, from_status, to_status, actor, lease, attempt, detail)
select e.*
  from made m
 cross join lateral (values
   (m.task_id, m.at, 'created', null, 'created', 'operator:admin', 0, 0, jsonb '{}'),
   (m.task_id, m.at + m.waited, 'claimed', 'created', 'assigned', 'agent:agent-' || m.i % 1000, 1, 1, jsonb '{}'),
   (m.task_id, m.at + m.waited + m.worked, case when m.failed then 'failed' else 'completed' end, 'assigned',
    case when m.failed then 'failed' else 'completed' end, 'agent:agent-' || m.i % 1000, 1, 1,
    case when m.failed then jsonb_build_object('reason', 'reason ' || m.i % 7) else jsonb '{}' end)) e
 order by 2;
insert into fleet.receipts (task_id, lease, attempt, agent_id, status, body, body_hash, received_at)
select task_id, 1, 1, 'agent-' || i % 1000, case when failed then 'failed' else 'completed' end,
       '{"status": "completed", "summary": "done"}', '\x00', at + waited + worked from made order by i;
analyze fleet.task_events;
analyze fleet.receipts;
select '{}';
