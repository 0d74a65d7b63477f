-- Purpose: whether this set of views and functions has ever been applied here.
-- Locks:   none.
-- Index:   definitions_pkey.
-- $1 text: its checksum.
select exists (select 1 from fleet.definitions where checksum = $1) as known
