-- Purpose: which task has which key, and the hash of the request that made it.
-- Locks:   none.
-- Index:   tasks_key; task_specs_pkey.
-- $1 text[]: keys.
select t.key, t.task_id, s.request_hash
  from fleet.tasks t
  left join fleet.task_specs s on s.task_id = t.task_id and s.version = 1
 where t.key = any ($1::text[])
