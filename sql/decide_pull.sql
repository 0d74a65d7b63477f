-- Purpose: phase 2: tasks that have waited undecided for longer than the grace, in a lane that no known host could ever
--          serve (one that is offline, full or draining could), become http_pull. Not while some live replica has yet to
--          say which hosts it knows.
-- Locks:   tasks FOR UPDATE SKIP LOCKED.
-- Index:   tasks_ready_push (decided tasks are no longer in it).
-- $1 double precision: grace in seconds; $2 bigint: at most this many; $3 text: actor.
with host as materialized (
  select capabilities from fleet.known_host_agents(make_interval(secs => $1))
),
unservable as materialized (
  select l.lane_id
    from fleet.lanes l
   where not exists (select 1 from host h where l.capabilities <@ h.capabilities)
     and not exists (select 1
                       from fleet.sessions s
                       left join fleet.replicas r on r.replica_id = s.subject and r.session_id = s.session_id
                      where s.kind = 'replica' and s.ended_at is null and r.hosts_listed_at is null)
),
waited as materialized (
  select t.task_id
    from unservable u
   cross join lateral (
     select r.task_id
       from fleet.tasks r
      where r.lane_id = u.lane_id and r.status = 'created' and r.execution_mode = 'undecided'
        and r.ready_at <= now() - make_interval(secs => $1)
      order by r.priority desc, r.seq
      limit $2
        for update skip locked) t
   limit $2
),
decided as (
  update fleet.tasks t
     set execution_mode = 'http_pull'
    from waited w
   where t.task_id = w.task_id and t.status = 'created' and t.execution_mode = 'undecided'
     and t.lane_id in (select lane_id from unservable)
  returning t.task_id, t.lane_id, t.lease, t.attempt
),
event as (
  insert into fleet.task_events (task_id, type, actor, lease, attempt, detail)
  select task_id, 'decided', $3::text, lease, attempt,
         '{"execution_mode": "http_pull", "reason": "no known host could serve it"}'
    from decided
)
select task_id, lease, attempt from decided
