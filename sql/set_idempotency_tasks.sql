-- Purpose: records which tasks an Idempotency-Key made, in the same transaction.
-- Locks:   the row inserted before.
-- Index:   idempotency_keys_pkey.
-- $1 text: the key; $2 uuid[]: the tasks, in the order of the request.
update fleet.idempotency_keys set task_ids = $2 where idempotency_key = $1
