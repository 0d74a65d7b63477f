-- Purpose: the name of this fleet on its hosts.
-- Locks:   none.
-- Index:   none; one row.
select fleet_id from fleet.identity
