-- Purpose: the receipts of one task, oldest first.
-- Locks:   none.
-- Index:   receipts_pkey.
-- $1 uuid: task.
select lease, agent_id, received_at, body from fleet.receipts where task_id = $1 order by lease
