-- Purpose: whether a transaction whose commit was not heard of went through: it wrote this event of the task.
-- Locks:   none.
-- Index:   task_events_task.
-- $1 uuid: task; $2 text: the transaction.
select event_id from fleet.task_events where task_id = $1 and xid = $2::text::xid8 limit 1
