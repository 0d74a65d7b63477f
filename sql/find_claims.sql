-- Purpose: the leases under which somebody has claimed a task, the two oldest; without those of claims that never reached the
--          claimer and were undone.
-- Locks:   none.
-- Index:   task_events_task.
-- $1 uuid: task; $2 text: actor.
select lease
  from fleet.task_events
 where task_id = $1 and (type = 'undone' or (type = 'claimed' and actor = $2))
 group by lease
having not bool_or(type = 'undone')
 order by lease
 limit 2
