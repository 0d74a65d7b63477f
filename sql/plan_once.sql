-- Purpose: until this transaction ends, statements are run by the plans that they have. Where few rows are asked for,
--          PostgreSQL would plan anew each time, and planning the statements of a claim takes longer than running them.
-- Locks:   none.
-- Index:   none.
select set_config('plan_cache_mode', 'force_generic_plan', true)
