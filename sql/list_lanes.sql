-- Purpose: all lanes, to be remembered: who satisfies which.
-- Locks:   none.
-- Index:   none.
select lane_id, capabilities from fleet.lanes
