-- Purpose: ids for tasks that are to be made, by the database's clock. Had before the transaction that inserts them, so
--          that repeating it after an unknown outcome makes nothing twice.
-- Locks:   none.
-- Index:   none.
-- $1 integer: how many.
select fleet.uuid_v7() as task_id from generate_series(1, $1::integer)
