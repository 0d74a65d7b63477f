-- What heartbeats remember, what the janitor needs to know, and how often hot tables are vacuumed.

-- What the agent held when its last heartbeat came, and did not list: {"task_id": lease}. Null after a heartbeat
-- without a list. What the next list does not name either goes back to the queue.
alter table fleet.sessions add column unlisted jsonb;
-- When a lane was last seen in use, and by which transaction it was retired because nothing had referred to it for a day.
-- Who interns the set again takes it back; what is still retired when all older transactions are over is dropped.
alter table fleet.lanes add column seen_at timestamptz not null default now();
alter table fleet.lanes add column retired_xid xid8;

-- Hot tables are vacuumed after so many rows whatever their size: 20 % of a table that has grown is too late. Rows that are
-- changed often and are few: at once.
alter table fleet.agents set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
alter table fleet.hosts set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table fleet.host_agents set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table fleet.replicas set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table fleet.replica_hosts set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, fillfactor = 50);
alter table fleet.cancel_notices set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
alter table fleet.runs set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
                            autovacuum_analyze_scale_factor = 0.05);
alter table fleet.forge_issues set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
-- Rows that are only added, and read by their keys: vacuumed for the visibility map, so that deleting by age stays cheap.
alter table fleet.task_specs set (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
alter table fleet.receipts set (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
alter table fleet.webhook_deliveries set (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
alter table fleet.idempotency_keys set (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
