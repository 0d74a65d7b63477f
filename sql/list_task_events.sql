-- Purpose: the life of one task.
-- Locks:   none.
-- Index:   task_events_task.
-- $1 uuid: task.
select event_id, task_id, at, type, from_status, to_status, actor, lease, attempt, detail
  from fleet.task_events
 where task_id = $1
 order by event_id
 limit 1000
