-- Purpose: whether this very receipt is stored already.
-- Locks:   none.
-- Index:   receipts_pkey.
-- $1 uuid: task; $2 bigint: lease; $3 bytea: hash of the body; $4 text: agent_id.
select body_hash = $3 and agent_id = $4 as same from fleet.receipts where task_id = $1 and lease = $2
