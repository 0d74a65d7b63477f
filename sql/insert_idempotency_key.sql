-- Purpose: reserves an Idempotency-Key, in the transaction that makes its tasks and before it does. Waits for another
--          request with the same key; zero rows then mean that it was first.
-- Locks:   the inserted row.
-- Index:   idempotency_keys_pkey.
-- $1 text: the key; $2 bytea: hash of the request.
insert into fleet.idempotency_keys (idempotency_key, request_hash, task_ids)
values ($1, $2, '{}')
on conflict (idempotency_key) do nothing
