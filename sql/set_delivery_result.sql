-- Purpose: what came of a delivery, in the transaction that took it.
-- Locks:   the row inserted before.
-- Index:   webhook_deliveries_pkey.
-- $1 text: delivery id; $2 text: result; $3 uuid: task; $4 text: reason.
update fleet.webhook_deliveries set result = $2, task_id = $3, reason = $4 where delivery_id = $1
