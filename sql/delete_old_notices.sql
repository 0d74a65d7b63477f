-- Purpose: forgets cancel notices that nobody needs any more.
-- Locks:   those rows.
-- Index:   none; the table is small.
delete from fleet.cancel_notices where at < now() - interval '1 day'
