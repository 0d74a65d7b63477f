-- Purpose: partitions of the event log and of the output, made ahead of time.
-- Locks:   an advisory lock for the transaction; SHARE UPDATE EXCLUSIVE on the parents while attaching.
-- Index:   none.
-- $1 double precision: how far ahead, in seconds.
select fleet.make_partitions(make_interval(secs => $1)) as made
