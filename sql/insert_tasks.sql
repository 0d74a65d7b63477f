-- Purpose: brings tasks into being, with their first spec and their event. What exists under its key is left alone and
--          not returned; that a task without a key exists, made by a try before, is an error (tasks_pkey). What it answers is
--          all of a new task that its request does not say.
-- Locks:   inserted rows only, in the order of their keys; those that nobody named in the order given, which is then
--          that of their seq. Of a replica's single task an advisory lock, for its seq.
-- Index:   tasks_key; tasks_pkey; lanes_capabilities_key; lanes_pkey; sessions_pkey.
-- One value each a task, in arrays, since reading them from JSON takes as long as all else: $1 uuid: id; $2 text: key, or null; $3 text:
-- source; $4 smallint: priority; $5 text: execution mode; $6 integer: retries; $7 integer: seconds of an attempt;
-- $8 timestamptz: when it is due, or null; $9 text: title; $10 text: body; $11 text, $12 text: labels and requirements, each
-- an array as text; $13 jsonb: repo, or null; $14 text: the issue's page, or null; $15 bytea: hash of the request, or null;
-- $16 bigint, $17 boolean: version of the issue and whether it is open, or null; $18 text: actor; $19 text: trace, or null.
-- $20 boolean: whether to say why they wait, which looks at agents and hosts.
with input as materialized (
  select i.task_id, i.key, i.source, i.priority, i.execution_mode, i.max_retries, i.timeout_secs, i.run_at, i.title, i.body,
         i.labels::text[] as labels, i.capabilities::text[] as capabilities, i.repo, i.issue_url, i.request_hash,
         i.issue_version, i.issue_open, i.actor, i.traceparent, i.ord
    from unnest($1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::text[], $6::integer[], $7::integer[],
                $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::text[], $13::jsonb[], $14::text[],
                $15::bytea[], $16::bigint[], $17::boolean[], $18::text[], $19::text[]) with ordinality
      as i(task_id, key, source, priority, execution_mode, max_retries, timeout_secs, run_at, title, body, labels, capabilities,
           repo, issue_url, request_hash, issue_version, issue_open, actor, traceparent, ord)
),
new as (
  select i.task_id, i.key, i.source, l.lane_id, i.priority,
         case when i.run_at > now() then 'scheduled' else 'created' end as status, i.execution_mode,
         i.execution_mode as created_mode, i.max_retries, i.timeout_secs,
         case when i.run_at > now() then i.run_at end as run_at, i.issue_version, i.issue_open, i.traceparent, i.ord
    from input i
    left join fleet.lanes l on l.capabilities = i.capabilities and l.retired_xid is null
),
named as (
  insert into fleet.tasks (task_id, key, source, lane_id, priority, status, execution_mode, created_mode, max_retries,
                           timeout_secs, run_at, issue_version, issue_open, traceparent)
  select task_id, key, source, lane_id, priority, status, execution_mode, created_mode, max_retries,
         timeout_secs, run_at, issue_version, issue_open, traceparent
    from new where key is not null order by key
  on conflict do nothing
  returning task_id, status, lane_id, priority, seq, execution_mode, run_at, created_at
),
-- Nothing is in the way of these, and to look for it costs a record of the log each.
unnamed as (
  insert into fleet.tasks (task_id, source, lane_id, priority, status, execution_mode, created_mode, max_retries,
                           timeout_secs, run_at, issue_version, issue_open, traceparent)
  select task_id, source, lane_id, priority, status, execution_mode, created_mode, max_retries,
         timeout_secs, run_at, issue_version, issue_open, traceparent
    from new where key is null order by ord
  returning task_id, status, lane_id, priority, seq, execution_mode, run_at, created_at
),
task as (
  select * from named union all select * from unnamed
),
spec as (
  insert into fleet.task_specs (task_id, title, body, labels, capabilities, repo, issue_url, request_hash)
  select i.task_id, i.title, i.body, i.labels, i.capabilities, i.repo, i.issue_url, i.request_hash
    from input i join task using (task_id)
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, detail)
  select task.task_id, 'created', null, task.status, i.actor,
         jsonb_strip_nulls(jsonb_build_object('execution_mode', task.execution_mode, 'run_at', task.run_at))
    from task join input i on i.task_id = task.task_id
),
-- Once for all that wait alike, as in sql/get_tasks.sql.
reason as materialized (
  select a.*, fleet.waiting_reason(a.status, a.execution_mode, null, a.capabilities, a.lane_id) as waiting_reason
    from (select distinct task.status, task.execution_mode, i.capabilities, task.lane_id
            from task join input i using (task_id)
           where $20::boolean) a
)
select i.ord, task.task_id, task.status, task.lane_id, task.priority, task.seq, task.run_at, task.created_at,
       w.waiting_reason,
       -- who is told of one task before its commit waits for this, see await_creations.sql; not for plain SQL, which may make
       -- any number in one transaction
       case when cardinality($1::uuid[]) = 1 and current_setting('agent_fleet.tells', true) = 'itself'
            then pg_advisory_xact_lock(hashtextextended('fleet.creation', task.seq)) end::text is not null as held
  from task
  join input i on i.task_id = task.task_id
  left join reason w on w.status = task.status and w.execution_mode = task.execution_mode
       and w.capabilities = i.capabilities and w.lane_id is not distinct from task.lane_id
 order by i.ord
