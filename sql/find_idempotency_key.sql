-- Purpose: what an Idempotency-Key has made before.
-- Locks:   none.
-- Index:   idempotency_keys_pkey.
-- $1 text: the key.
select request_hash, task_ids from fleet.idempotency_keys where idempotency_key = $1
