-- Purpose: how full the server's one queue of notifications is, from 0 to 1. When it is full, no transaction that notifies
--          can commit.
-- Locks:   none.
-- Index:   none.
select pg_notification_queue_usage() as notify_queue
