-- Purpose: which migrations have been applied, and their checksums; sent as it is, so that it works through any pooler.
-- Locks: none.
-- Index: none; a handful of rows.
select version, checksum from fleet.schema_history order by version
