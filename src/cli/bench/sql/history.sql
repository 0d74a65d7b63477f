-- Tasks that were done since this week began: :tasks of them, with specs, events and receipts.
insert into fleet.lanes (capabilities) values (array['agent:past']) on conflict do nothing;
create temp table made as
select fleet.uuid_v7() as task_id, i,
       now() - random() * (now() - date_trunc('week', now(), 'UTC')) as at
  from generate_series(1, :tasks) as i;
insert into fleet.tasks (task_id, key, source, lane_id, status, execution_mode, lease, attempt, assigned_agent_id, claimed_version,
                         ready_at, created_at, assigned_at, completed_at, last_activity_at, error)
select task_id, task_id::text, 'api', (select lane_id from fleet.lanes where capabilities = array['agent:past']),
       case when i % 100 = 0 then 'failed' else 'completed' end, 'http_pull', 1, 1, 'agent-' || i % 1000, 1,
       at, at, at, at, at, case when i % 100 = 0 then 'reason ' || i % 7 end
  from made order by i;
insert into fleet.task_specs (task_id, title, body, labels, capabilities, created_at)
select task_id, 'A task that is done', 'It was for others.', array['agent:past'], array['agent:past'], at from made;
insert into fleet.task_events (task_id, at, type, from_status, to_status, actor, lease, attempt)
select task_id, at, type, from_status, case when i % 100 = 0 and type = 'completed' then 'failed' else to_status end,
       'agent:agent-' || i % 1000, lease, lease
  from made
 cross join (values ('created', null, 'created', 0), ('claimed', 'created', 'assigned', 1),
                    ('completed', 'assigned', 'completed', 1)) as e(type, from_status, to_status, lease);
insert into fleet.receipts (task_id, lease, attempt, agent_id, status, body, body_hash, received_at)
select task_id, 1, 1, 'agent-' || i % 1000, 'completed', '{"status": "completed", "summary": "done"}', '\x00', at from made;
analyze fleet.task_events;
analyze fleet.receipts;
select '{}';
