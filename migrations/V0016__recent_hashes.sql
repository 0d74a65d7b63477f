-- States of an issue within one second are told apart by the hashes of their deliveries. One hash was kept, that of the last
-- state: told again by another hook, under another id, the one before it was news, and won.
--
-- Those of the same second before the last one. Filled in by what comes; a replica of the version before neither reads nor
-- writes it.
alter table fleet.forge_issues add column recent_hashes bytea[] not null default '{}';
