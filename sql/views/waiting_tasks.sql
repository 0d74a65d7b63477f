-- Purpose: what waits, and for what. The reason of a ready task depends on its lane and mode alone: it is asked once for
--          each of those, and not for each task. The text is looked up row by row, and only when it is selected, after a sort
--          for the rows that are left by a limit: joined, all of task_specs would be read for it.
-- Index:   tasks_ready_pull, tasks_ready_push, tasks_due, tasks_held, one for each arm; task_specs_pkey when the text
--          is selected.
create or replace view fleet.waiting_tasks as
select t.task_id, t.key,
       (select s.title from fleet.task_specs s where s.task_id = t.task_id and s.version = t.spec_version) as title,
       case when r.lane_id is not null then r.capabilities
            else (select s.capabilities from fleet.task_specs s where s.task_id = t.task_id and s.version = t.spec_version)
       end as capabilities, t.lane_id,
       (array['low', 'normal', 'high', 'urgent'])[t.priority + 1] as priority, t.status, t.execution_mode,
       case when t.status = 'scheduled' then (select fleet.waiting_reason('scheduled', 'undecided', null, null, null))
            when t.status = 'assigned' then (select fleet.waiting_reason('assigned', 'undecided', null, null, null))
            else r.waiting_reason end as waiting_reason,
       now() - case when t.status = 'created' then t.ready_at else t.created_at end as waiting_for,
       t.pinned_to, t.due_at, t.attempt, t.retry_count, t.max_retries, t.error, t.source, t.seq, t.created_at
  from (select * from fleet.tasks where status = 'created' and execution_mode in ('http_pull', 'undecided')
        union all
        select * from fleet.tasks where status = 'created' and execution_mode = 'ssh_cli'
        union all
        select * from fleet.tasks where due_at is not null and status = 'scheduled'
        union all
        select * from fleet.tasks where pinned_to is not null and status = 'assigned' and holder is null) t
  left join fleet.lane_reasons r on r.lane_id = t.lane_id and r.execution_mode = t.execution_mode;

comment on view fleet.waiting_tasks is 'What waits, and for what. Ask it with a limit, for one key, or grouped: it has a row for each waiting task.';
comment on column fleet.waiting_tasks.task_id is 'The task.';
comment on column fleet.waiting_tasks.key is 'Its name: org/repo#42 for an issue, else what its maker chose; null if nobody gave it one.';
comment on column fleet.waiting_tasks.title is 'Its title.';
comment on column fleet.waiting_tasks.capabilities is 'What it requires.';
comment on column fleet.waiting_tasks.lane_id is 'Its lane; null until the scheduler has given it one.';
comment on column fleet.waiting_tasks.priority is 'low, normal, high or urgent.';
comment on column fleet.waiting_tasks.status is 'created, scheduled, or assigned (pinned and not leased).';
comment on column fleet.waiting_tasks.execution_mode is 'undecided, ssh_cli or http_pull.';
comment on column fleet.waiting_tasks.waiting_reason is 'Why it waits, in the words of the API; null for the moment until a task that came by SQL has its lane.';
comment on column fleet.waiting_tasks.waiting_for is 'Since it last became ready; for what is not ready: since it was made.';
comment on column fleet.waiting_tasks.pinned_to is 'The agent or host that an operator chose.';
comment on column fleet.waiting_tasks.due_at is 'When a scheduled one becomes ready, or a reservation runs out.';
comment on column fleet.waiting_tasks.attempt is 'Attempts so far.';
comment on column fleet.waiting_tasks.retry_count is 'Retries so far.';
comment on column fleet.waiting_tasks.max_retries is 'Retries that it may have.';
comment on column fleet.waiting_tasks.error is 'Why the last attempt failed.';
comment on column fleet.waiting_tasks.source is 'api, cli, sql or forgejo.';
comment on column fleet.waiting_tasks.seq is 'Order of making; within a lane and a priority the lowest goes first.';
comment on column fleet.waiting_tasks.created_at is 'When it was made.';
