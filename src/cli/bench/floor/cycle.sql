-- The floor of `cycle`, for pgbench: what a claim and a completion have to write, one task a commit, by clients that
-- talk to the database themselves. Same tables, same indexes, same rows as the coordinator's; no HTTP, no credentials,
-- no count of slots, no check of a repeated receipt. Two variables: "lane" says where its tasks wait, "actor" who does
-- it (pgbench would take them for parameters if they stood here as such, and a colon in a literal, too).
-- The first commit is the claim with its event.
with own as materialized (
  select task_id
    from fleet.tasks
   where lane_id = :lane and status = 'created' and execution_mode in ('http_pull', 'undecided')
   order by priority desc, seq
   limit 1
     for update skip locked
),
claimed as (
  update fleet.tasks t
     set status = 'assigned', execution_mode = 'http_pull', lease = t.lease + 1, attempt = t.attempt + 1,
         holder = lpad(:client_id::text, 32, '0')::uuid, assigned_agent_id = 'raw-client', claimed_version = t.spec_version,
         assigned_at = now(), deadline_at = now() + make_interval(secs => t.timeout_secs), last_activity_at = now()
    from own
   where t.task_id = own.task_id
  returning t.task_id, t.lease, t.attempt
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, 'claimed', 'created', 'assigned', :actor::text, lease, attempt, '{"execution_mode": "http_pull"}'
    from claimed
)
select task_id, lease from claimed \gset
-- The second commit is the completion with its receipt and its event, fenced.
with cur as materialized (
  select task_id, lease, attempt
    from fleet.tasks
   where task_id = :task_id::uuid and lease = :lease and holder = lpad(:client_id::text, 32, '0')::uuid and status = 'assigned'
     for update
),
ended as (
  update fleet.tasks t
     set status = 'completed', holder = null, deadline_at = null, completed_at = now(), last_activity_at = now()
    from cur
   where t.task_id = cur.task_id
  returning t.task_id, t.lease, t.attempt
),
receipt as (
  insert into fleet.receipts (task_id, lease, attempt, agent_id, status, body, body_hash)
  select task_id, lease, attempt, 'raw-client', 'completed',
         '{"status": "completed", "summary": "done", "artifacts": [], "duration_seconds": 1}',
         '\x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'
    from ended
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id, 'completed', 'assigned', 'completed', :actor::text, lease, attempt, '{"receipt": "completed"}'
    from ended
)
select 1 / count(*) as completed from ended \gset
