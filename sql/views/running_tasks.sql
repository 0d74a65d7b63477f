-- Purpose: what is leased: to whom, since when, until when, and how long the holder has been silent.
-- Index:   tasks_held; sessions_pkey; task_specs_pkey.
create or replace view fleet.running_tasks as
select t.task_id, t.key,
       (select s.title from fleet.task_specs s where s.task_id = t.task_id and s.version = t.claimed_version) as title,
       t.lane_id, t.status, t.execution_mode,
       case when t.host_agent_id is null then 'agent' else 'host' end as holder_kind,
       case when t.host_agent_id is null then t.assigned_agent_id else t.assigned_host end as holder,
       case when h.kind = 'replica' then h.subject end as replica_id,
       t.lease, t.attempt, now() - t.assigned_at as lease_age, now() - t.started_at as running_for,
       t.deadline_at, t.deadline_at - now() as time_left, now() - h.last_heartbeat_at as silence,
       now() - t.last_activity_at as idle, h.ended_at is null as holder_lives
  from fleet.tasks t
  left join fleet.sessions h on h.session_id = t.holder
 where t.holder is not null;

comment on view fleet.running_tasks is 'What is leased, to whom, since when and until when.';
comment on column fleet.running_tasks.task_id is 'The task.';
comment on column fleet.running_tasks.key is 'Its name; null if nobody gave it one.';
comment on column fleet.running_tasks.title is 'Its title, as the holder was given it.';
comment on column fleet.running_tasks.lane_id is 'Its lane.';
comment on column fleet.running_tasks.status is 'assigned or running; review_pending, completed or failed when the forge moved it while it was held.';
comment on column fleet.running_tasks.execution_mode is 'ssh_cli or http_pull.';
comment on column fleet.running_tasks.holder_kind is 'agent or host.';
comment on column fleet.running_tasks.holder is 'agent_id, or host_id/agent_type.';
comment on column fleet.running_tasks.replica_id is 'For a run on a host: the replica that follows it.';
comment on column fleet.running_tasks.lease is 'The fencing number.';
comment on column fleet.running_tasks.attempt is 'Which attempt this is.';
comment on column fleet.running_tasks.lease_age is 'Since the claim.';
comment on column fleet.running_tasks.running_for is 'Since the attempt was started; null while it is only assigned.';
comment on column fleet.running_tasks.deadline_at is 'When the attempt times out.';
comment on column fleet.running_tasks.time_left is 'Until then; negative when it is late.';
comment on column fleet.running_tasks.silence is 'Since the holder''s session was last heard of: the agent, or the replica that follows the run.';
comment on column fleet.running_tasks.idle is 'Since anything was heard of the task itself.';
comment on column fleet.running_tasks.holder_lives is 'False when the session has ended and the task is about to go back.';
