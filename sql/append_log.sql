-- Purpose: stores a chunk of an agent's output if it continues what is there; answers the next offset as it was before.
--          The task is locked by lock_lease in the same transaction.
-- Locks:   appends.
-- Index:   task_logs_pkey.
-- $1 uuid: task; $2 bigint: lease; $3 integer: attempt; $4 bigint: offset; $5 bytea: data.
with last as (
  select "offset" + length(data) as next
    from fleet.task_logs
   where task_id = $1 and lease = $2
   order by "offset" desc
   limit 1
),
head as (
  select coalesce((select next from last), 0)::bigint as next
),
stored as (
  insert into fleet.task_logs (task_id, lease, attempt, "offset", data)
  select $1, $2, $3, $4, $5::bytea from head where head.next = $4 and length($5::bytea) > 0
)
select next from head
