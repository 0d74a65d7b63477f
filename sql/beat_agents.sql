-- Purpose: heartbeats of agents, in a batch. Only a live session can be renewed; one that is not returned has ended. With
--          a list of what the agent works on: what it held when the heartbeat before this one came and neither list
--          names is in `dropped`; what this list names and it does not hold is in `lost`. What it holds now and does
--          not list is kept for the next heartbeat. What was cancelled under it is not told of a task that it holds again.
-- Locks:   sessions by id, FOR NO KEY UPDATE.
-- Index:   sessions_pkey; agents_pkey; tasks_held; cancel_notices_pkey; tasks_pkey.
-- $1 uuid[]: sessions, each once; $2 boolean[]: whether there is a list; $3 double precision[]: seconds since the heartbeat
-- arrived; $4 uuid[], $5 uuid[]: the lists, as pairs of session and task.
with input as materialized (
  select * from unnest($1::uuid[], $2::boolean[], $3::double precision[]) as i(session_id, has_list, age)
),
listed as materialized (
  select distinct * from unnest($4::uuid[], $5::uuid[]) as l(session_id, task_id)
),
own as materialized (
  select s.session_id, s.subject, s.ttl, s.unlisted, i.has_list,
         statement_timestamp() - make_interval(secs => i.age) as arrived_at
    from input i
    join fleet.sessions s on s.session_id = i.session_id
   where s.kind = 'agent' and s.ended_at is null
   order by s.session_id
     for no key update of s
),
held as materialized (
  select o.session_id, t.task_id, t.lease, l.task_id is not null as is_listed, t.assigned_at <= o.arrived_at as is_older,
         (o.unlisted ->> t.task_id::text)::bigint is not distinct from t.lease as was_unlisted
    from own o
   cross join lateral (
     select t.task_id, t.lease, t.assigned_at
       from fleet.tasks t
      where t.host_agent_id is null and t.holder = o.session_id
     -- session by session: a plan from when nothing was held would read all that has been
     offset 0) t
    left join listed l on l.session_id = o.session_id and l.task_id = t.task_id
   where o.has_list
),
beaten as (
  update fleet.sessions s
     set last_heartbeat_at = now(),
         unlisted = (select jsonb_object_agg(h.task_id, h.lease) from held h
                      where h.session_id = o.session_id and h.is_older and not h.is_listed)
    from own o
   where s.session_id = o.session_id
)
select o.session_id, coalesce(a.drained_at is not null, false) as draining,
       array(select n.task_id from fleet.cancel_notices n
              where n.session_id = o.session_id and n.at > now() - o.ttl
                -- a notice does not name its lease, so it would end the new attempt
                and not exists (select from fleet.tasks t
                                 where t.task_id = n.task_id and t.holder = n.session_id and t.lease > n.lease)
              order by n.at) as cancelled,
       d.tasks as dropped, d.leases as dropped_leases,
       array(select l.task_id from listed l
              where l.session_id = o.session_id
                and not exists (select 1 from held h where h.session_id = l.session_id and h.task_id = l.task_id)) as lost
  from own o
  left join fleet.agents a on a.agent_id = o.subject
 cross join lateral (
   select coalesce(array_agg(h.task_id order by h.task_id), '{}') as tasks,
          coalesce(array_agg(h.lease order by h.task_id), '{}') as leases
     from held h
    where h.session_id = o.session_id and h.was_unlisted and not h.is_listed) d
