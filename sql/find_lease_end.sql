-- Purpose: whether a lease was ended by this actor. A lease ends once, so a commit that was not heard of is found here.
-- Locks:   none.
-- Index:   task_events_task.
-- $1 uuid: task; $2 bigint: lease; $3 text: actor.
select event_id
  from fleet.task_events
 where task_id = $1 and lease = $2 and actor = $3
   and type in ('completed', 'review_pending', 'failed', 'timed_out', 'lost', 'released', 'undone', 'lease_ended')
 limit 1
