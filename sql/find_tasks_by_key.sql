-- Purpose: which task has which key, and the hash of the request that made it. A task that nobody named has its id for one.
-- Locks:   none.
-- Index:   tasks_key; tasks_pkey; task_specs_pkey.
-- $1 text[]: keys; $2 uuid[]: ids of tasks that nobody named.
select t.task_id, coalesce(t.key, t.task_id::text) as key, s.request_hash
  from (select task_id, key from fleet.tasks where key = any ($1::text[])
        union all
        select task_id, null from fleet.tasks where task_id = any ($2::uuid[])) t
  left join fleet.task_specs s on s.task_id = t.task_id and s.version = 1
