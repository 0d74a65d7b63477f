-- Purpose: holders say that they work (again): assigned becomes running; running, and what the forge has moved on, stay.
--          Fenced by task, lease and session.
-- Locks:   tasks by id.
-- Index:   tasks_pkey.
-- $1 uuid[]: tasks, each once; $2 bigint[]: lease; $3 uuid[]: session; $4 text[]: actor; $5 jsonb[]: detail of the event;
-- $6 integer[]: null, or the time limit in seconds from now of what begins.
with input as materialized (
  select *
    from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::jsonb[], $6::integer[]) with ordinality
      as i(task_id, lease, holder, actor, detail, timeout_secs, ord)
),
cur as materialized (
  select i.ord, i.task_id, i.actor, i.detail, i.timeout_secs, t.status, t.attempt,
         coalesce(t.lease = i.lease and t.holder = i.holder, false) as held,
         t.execution_mode = 'ssh_cli' and i.lease >= t.lease as on_host
    from input i
    join fleet.tasks t on t.task_id = i.task_id
   order by t.task_id
     for update of t
),
started as (
  update fleet.tasks t
     set status = case when cur.status = 'assigned' then 'running' else cur.status end,
         started_at = coalesce(t.started_at, now()),
         deadline_at = case when cur.status = 'assigned' and cur.timeout_secs is not null
                            then now() + make_interval(secs => cur.timeout_secs) else t.deadline_at end,
         last_activity_at = now()
    from cur
   where t.task_id = cur.task_id and cur.held
  returning t.task_id, t.lease, t.attempt, cur.status as from_status, cur.actor, cur.detail
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id,
         case when from_status = 'assigned' then 'started' else 'progress' end,
         from_status, case when from_status = 'assigned' then 'running' end, actor, lease, attempt, detail
    from started
   where from_status = 'assigned' or detail <> '{}'
)
select ord, held as applied, on_host,
       case when held and status = 'assigned' then 'running' else status end as status, attempt,
       case when not held then null when status = 'assigned' then 'started' when detail <> '{}' then 'progress' end as type
  from cur
