-- Purpose: output of one lease from an offset on. A chunk that the offset cuts is returned whole; the caller cuts it.
-- Locks:   none.
-- Index:   task_logs_pkey.
-- $1 uuid: task; $2 bigint: lease; $3 bigint: offset; $4 bigint: how many chunks.
select lease, attempt, "offset", at, data
  from fleet.task_logs
 where task_id = $1 and lease = $2 and "offset" + length(data) > $3
 order by "offset"
 limit $4
