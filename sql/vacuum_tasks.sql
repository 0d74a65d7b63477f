-- Purpose: takes dead rows out of fleet.tasks and its indexes. A transaction of its own. Waits for nobody; in one process, since
--          it comes often and the parts that change are small.
-- Locks:   the table, SHARE UPDATE EXCLUSIVE, or nothing where somebody has it; never what TRUNCATE needs.
-- Index:   reads all of them.
vacuum (skip_locked, truncate off, parallel 0) fleet.tasks
