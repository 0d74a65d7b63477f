-- A vacuum of fleet.tasks reads all of its indexes, also those of what waits: with 1,000,000 tasks it takes 300 ms of a
-- processor, and claims beside it take half as long again. So it has to be worth it. At 500,000 tasks a busy queue still has
-- it at every look (`autovacuum_naptime`); with 4 % it was every other look, and the ready indexes half as large again.
alter table fleet.tasks set (autovacuum_vacuum_scale_factor = 0.02);
-- These only grow, and are vacuumed for what was added. At the default pace, shared among all of autovacuum's three workers, two of
-- them can be busy here for seconds, while the ready indexes wait for the third.
alter table fleet.task_specs set (autovacuum_vacuum_cost_limit = 2000);
alter table fleet.receipts set (autovacuum_vacuum_cost_limit = 2000);
-- V0012 left this table with plans that were made while there were few sessions.
alter table fleet.sessions set (autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 500);
