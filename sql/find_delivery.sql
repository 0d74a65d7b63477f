-- Purpose: what came of a delivery.
-- Locks:   none.
-- Index:   webhook_deliveries_pkey.
-- $1 text: delivery id.
select result, task_id from fleet.webhook_deliveries where delivery_id = $1
