-- Purpose: whether readers of events are held back: for how many seconds the oldest committed event at or above the horizon
--          has not been told. Null when none waits.
-- Locks:   none.
-- Index:   task_events_pkey.
-- $1 text: horizon, see read_event_horizon.
select extract(epoch from now() - min(at))::double precision as stalled_secs from fleet.task_events where xid >= $1::text::xid8
