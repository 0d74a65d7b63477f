-- Purpose: deliveries are taken once. Waits for the same delivery that is being taken elsewhere; a row less than was given
--          means that one has been.
-- Locks:   the inserted rows, in the order of their ids.
-- Index:   webhook_deliveries_pkey.
-- One value each a delivery: $1 text[]: id; $2 bytea[]: hash of the body; $3 text[]: event; $4 text[]: action; $5 text[]:
-- result; $6 uuid[]: task, or null; $7 text[]: reason, or null.
insert into fleet.webhook_deliveries (delivery_id, body_hash, event, action, result, task_id, reason)
select d.delivery_id, d.body_hash, d.event, d.action, d.result, d.task_id, d.reason
  from unnest($1::text[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::text[])
       as d(delivery_id, body_hash, event, action, result, task_id, reason)
 order by d.delivery_id
on conflict (delivery_id) do nothing
