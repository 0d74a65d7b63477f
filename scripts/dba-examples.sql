-- A small fleet at one moment, for the examples in docs/dba.md: two agents, a host with two CLIs, one coordinator, a dozen
-- tasks. Tasks come by the function that a DBA has; what agents and coordinators would have done since is written here.
insert into fleet.lanes (capabilities) values ('{agent:code}'), ('{agent:code,agent:gpu}'), ('{agent:docs}');

insert into fleet.sessions (session_id, kind, subject, ttl, started_at, last_heartbeat_at) values
  ('00000000-0000-7000-8000-00000000000a', 'agent', 'codex-1', '3 min', now() - interval '9 h', now() - interval '12 s'),
  ('00000000-0000-7000-8000-00000000000b', 'agent', 'docs-1', '3 min', now() - interval '2 h', now() - interval '31 s'),
  ('00000000-0000-7000-8000-00000000000c', 'replica', 'coord-1', '15 s', now() - interval '3 d', now() - interval '2 s');
insert into fleet.agents (agent_id, agent_type, hostname, capabilities, max_concurrency, session_id, token_digest, drained_at) values
  ('codex-1', 'codex-cli', 'build-7', '{agent:code}', 2, '00000000-0000-7000-8000-00000000000a', '\x01', null),
  ('docs-1', 'claude-code', 'build-8', '{agent:docs}', 1, '00000000-0000-7000-8000-00000000000b', '\x02', now());
insert into fleet.replicas (replica_id, session_id, hostname, version, machine, hosts_listed_at)
values ('coord-1', '00000000-0000-7000-8000-00000000000c', 'coord-1.lan', '0.3.0', 'coord-1', now());
insert into fleet.hosts (host_id, hostname, work_dir) values ('build-1', 'build-1.lan', '/srv/fleet');
insert into fleet.host_agents (host_id, agent_type, capabilities, max_concurrency, parked_until, parked_reason) values
  ('build-1', 'codex-cli', '{agent:code}', 2, null, null),
  ('build-1', 'claude-code', '{agent:code}', 1, now() + interval '9 min', 'quota');
insert into fleet.replica_hosts (session_id, host_id, online, checked_at)
values ('00000000-0000-7000-8000-00000000000c', 'build-1', true, now() - interval '7 s');

-- What waits and what runs.
select fleet.enqueue('Fix the login test', labels => '{agent:code}', key => 'acme/shop#41');
select fleet.enqueue('Train the ranker', labels => '{agent:code,agent:gpu}', key => 'acme/shop#42');
select fleet.enqueue('Write the changelog', labels => '{agent:docs}', key => 'acme/shop#43');
select fleet.enqueue('Sort the imports', labels => '{agent:code}', key => 'acme/shop#44');
select fleet.enqueue('Nightly check', labels => '{agent:code}', key => 'nightly', run_at => now() + interval '6 h');
update fleet.tasks t set created_at = now() - w.waited, ready_at = now() - w.waited
  from (values ('acme/shop#41', interval '11 min'), ('acme/shop#42', '22 min'), ('acme/shop#43', '33 min'),
               ('acme/shop#44', '55 min'), ('nightly', '44 min')) w(key, waited)
 where t.key = w.key;
update fleet.tasks
   set source = 'forgejo', issue_version = 1, status = 'running', execution_mode = 'http_pull', lease = 1, attempt = 1, claimed_version = 1,
       holder = '00000000-0000-7000-8000-00000000000a', assigned_agent_id = 'codex-1', assigned_at = now() - interval '8 min',
       started_at = now() - interval '7 min 55 s', last_activity_at = now() - interval '40 s', deadline_at = now() + interval '52 min'
 where key = 'acme/shop#41';
update fleet.task_events e set at = t.created_at from fleet.tasks t where t.task_id = e.task_id;
insert into fleet.task_events (task_id, at, type, from_status, to_status, actor, lease, attempt)
select task_id, now() - e.ago, e.type, e.was, e.becomes, 'agent:codex-1', 1, 1
  from fleet.tasks,
       (values (interval '8 min', 'claimed', 'created', 'assigned'), ('7 min 55 s', 'started', 'assigned', 'running')) e(ago, type, was, becomes)
 where key = 'acme/shop#41';

-- What was done in the last hour: 30 tasks of agent:code, one in five not at the first try.
create temp table done as
select i, fleet.uuid_v7() as task_id, 'acme/shop#' || i as key, now() - interval '62 min' + i * interval '2 min' as made,
       i * interval '0.7 s' as waited, interval '3 min' - i * interval '3 s' as worked, i % 5 = 0 as failed
  from generate_series(1, 30) i;
insert into fleet.tasks (task_id, key, lane_id, status, execution_mode, lease, attempt, assigned_agent_id, ready_at, created_at,
                         assigned_at, started_at, completed_at, last_activity_at, error)
select d.task_id, d.key, l.lane_id, case when d.failed then 'failed' else 'completed' end, 'http_pull', 1, 1, 'codex-1', d.made, d.made,
       d.made + d.waited, d.made + d.waited, d.made + d.waited + d.worked, d.made + d.waited + d.worked,
       case when d.failed then 'exit code 2' end
  from done d join fleet.lanes l on l.capabilities = '{agent:code}';
insert into fleet.task_specs (task_id, title, labels, capabilities)
select task_id, 'Number ' || i, '{agent:code}', '{agent:code}' from done;
insert into fleet.task_events (task_id, at, type, from_status, to_status, actor, lease, attempt, detail)
select d.task_id, e.*
  from done d
 cross join lateral (values
   (d.made, 'created', null, 'created', 'forgejo:ana', 0, 0, jsonb '{}'),
   (d.made + d.waited, 'claimed', 'created', 'assigned', 'agent:codex-1', 1, 1, '{}'),
   (d.made + d.waited + d.worked, case when d.failed then 'failed' else 'completed' end, 'assigned',
    case when d.failed then 'failed' else 'completed' end, 'agent:codex-1', 1, 1,
    case when d.failed then jsonb '{"reason": "exit code 2"}' else '{}' end)) e;

-- What the forge sent, and what could not be taken in yet.
insert into fleet.webhook_deliveries (delivery_id, body_hash, event, action, result, received_at)
select 'd' || i, '\x00', 'issues', case when i % 5 = 0 then 'edited' else 'opened' end, case when i % 5 = 0 then 'ignored' else 'created' end, now()
  from generate_series(1, 22) i;
insert into fleet.forge_issues (key, version, updated_at, body_hash, state, received_at)
select 'acme/shop#41', 2, now(), '\x00', '{}', now() - interval '7 min 12 s';
