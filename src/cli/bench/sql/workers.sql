-- Who works for the backlog's lanes, and what of it is under way: 1,000 agents with two lanes each, 20 hosts with two CLIs
-- each and four replicas that reach them; the last ten lanes have nobody. With :under_way, 16 % of the backlog are held
-- (one in ten of those by a host), and 4 % each are scheduled, pinned and in review.
create temp table agent as
select 'bench-agent-' || n as agent_id, fleet.uuid_v7() as session_id,
       array['agent:foreign-' || lpad((1 + n % 190)::text, 3, '0'), 'agent:foreign-' || lpad((1 + n * 7 % 190)::text, 3, '0')] as capabilities
  from generate_series(1, 1000) as n;
insert into fleet.sessions (session_id, kind, subject, ttl) select session_id, 'agent', agent_id, interval '3 days' from agent;
insert into fleet.agents (agent_id, agent_type, hostname, capabilities, max_concurrency, session_id, token_digest)
select agent_id, 'bench', 'bench', capabilities, 4, session_id, convert_to(agent_id, 'UTF8') from agent;
create temp table replica as
select 'bench-replica-' || n as replica_id, fleet.uuid_v7() as session_id from generate_series(1, 4) as n;
insert into fleet.sessions (session_id, kind, subject, ttl) select session_id, 'replica', replica_id, interval '3 days' from replica;
insert into fleet.replicas (replica_id, session_id, hostname, version, machine, hosts_listed_at)
select replica_id, session_id, 'bench', '0', 'bench', now() from replica;
insert into fleet.hosts (host_id, hostname, work_dir) select 'bench-host-' || n, 'bench', '/work' from generate_series(1, 20) as n;
insert into fleet.host_agents (host_id, agent_type, capabilities, max_concurrency)
select 'bench-host-' || n, cli, array['agent:foreign-' || lpad(n::text, 3, '0')], 8
  from generate_series(1, 20) as n, unnest(array['codex-cli', 'claude-code']) as cli;
insert into fleet.replica_hosts (session_id, host_id, online, checked_at)
select r.session_id, h.host_id, true, now() from replica r cross join fleet.hosts h;

create temp table chosen as
select t.task_id, row_number() over (order by t.seq) as n, t.ready_at as at,
       row_number() over (order by t.seq) % 100 as place
  from fleet.tasks t where t.status = 'created' and :under_way;
with held as (
  select c.task_id, c.at, a.agent_id, a.session_id, h.host_agent_id, h.host, r.session_id as replica
    from chosen c
    join (select *, row_number() over () - 1 as n from agent) a on a.n = c.n % 1000
    left join (select host_agent_id, host_id || '/' || agent_type as host, row_number() over () - 1 as n from fleet.host_agents) h
      on h.n = c.n % 40 and c.n % 10 = 0
    join (select *, row_number() over () - 1 as n from replica) r on r.n = c.n % 4
   where c.place < 16
)
update fleet.tasks t
   set status = 'running', execution_mode = case when h.host_agent_id is null then 'http_pull' else 'ssh_cli' end,
       lease = 1, attempt = 1, claimed_version = 1, host_agent_id = h.host_agent_id,
       holder = case when h.host_agent_id is null then h.session_id else h.replica end,
       assigned_agent_id = case when h.host_agent_id is null then h.agent_id end, assigned_host = h.host,
       assigned_at = now() - interval '5 minutes', started_at = now() - interval '5 minutes', last_activity_at = now(),
       deadline_at = now() + interval '1 hour'
  from held h
 where t.task_id = h.task_id;
update fleet.tasks t
   set status = 'scheduled', run_at = now() + interval '1 day'
  from chosen c where t.task_id = c.task_id and c.place between 16 and 19;
update fleet.tasks t
   set status = 'assigned', execution_mode = 'http_pull', pinned_to = 'bench-agent-' || 1 + c.n % 1000,
       assigned_agent_id = 'bench-agent-' || 1 + c.n % 1000, pinned_until = now() + interval '1 day'
  from chosen c where t.task_id = c.task_id and c.place between 20 and 23;
update fleet.tasks t
   set status = 'review_pending', execution_mode = 'http_pull', lease = 1, attempt = 1, pr_url = 'https://forge.example/pull/1',
       assigned_at = c.at, last_activity_at = c.at
  from chosen c where t.task_id = c.task_id and c.place between 24 and 27;
select '{}';
