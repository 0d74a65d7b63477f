-- Purpose: the holder says that it works (again): assigned becomes running; running, and what the forge has moved on,
--          stay. Fenced by task, lease and session.
-- Locks:   the task.
-- Index:   tasks_pkey.
-- $1 uuid: task; $2 bigint: lease; $3 uuid: session; $4 text: actor; $5 jsonb: detail of the event;
-- $6 integer: null, or the time limit in seconds from now of what begins.
with cur as materialized (
  select task_id, status, lease, holder, execution_mode
    from fleet.tasks where task_id = $1 for update
),
started as (
  update fleet.tasks t
     set status = case when cur.status = 'assigned' then 'running' else cur.status end,
         started_at = coalesce(t.started_at, now()),
         deadline_at = case when cur.status = 'assigned' and $6::integer is not null
                            then now() + make_interval(secs => $6::integer) else t.deadline_at end,
         last_activity_at = now()
    from cur
   where t.task_id = cur.task_id and cur.lease = $2 and cur.holder = $3
  returning t.task_id, t.status, t.lease, t.attempt, cur.status as from_status
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select task_id,
         case when from_status = 'assigned' then 'started' else 'progress' end,
         from_status, case when from_status = 'assigned' then 'running' end, $4::text, lease, attempt, $5::jsonb
    from started
   where from_status = 'assigned' or $5::jsonb <> '{}'
)
select cur.status, cur.lease, cur.holder, cur.execution_mode, started.task_id is not null as applied
  from cur left join started on true
