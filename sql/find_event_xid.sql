-- Purpose: the place of an event in the order of readers.
-- Locks:   none.
-- Index:   task_events_id.
-- $1 bigint: event_id.
select xid::text as xid from fleet.task_events where event_id = $1
