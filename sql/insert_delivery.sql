-- Purpose: a delivery is taken once. Waits for the same delivery that is being taken elsewhere; zero rows mean that it
--          has been.
-- Locks:   the inserted row.
-- Index:   webhook_deliveries_pkey.
-- $1 text: delivery id; $2 bytea: hash of the body; $3 text: event; $4 text: action.
insert into fleet.webhook_deliveries (delivery_id, body_hash, event, action, result)
values ($1, $2, $3, $4, 'ignored')
on conflict (delivery_id) do nothing
