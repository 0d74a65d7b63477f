-- Purpose: stores a chunk of a run's output. One statement: next_offset moves only from the offset that was read, under
--          the current lease, with the chunk beside it, so that two followers cannot both store a byte. What speaks has
--          started.
-- Locks:   the run; appends.
-- Index:   tasks_pkey; runs_pkey.
-- $1 uuid: task; $2 bigint: run_lease; $3 bigint: lease; $4 uuid: session; $5 bigint: offset; $6 bytea: data.
with moved as (
  update fleet.runs r
     set next_offset = r.next_offset + length($6::bytea), state = 'running', started_at = coalesce(r.started_at, now())
   where r.task_id = $1 and r.run_lease = $2 and r.next_offset = $5
     -- on the row itself: what ends it also ends its lease, which this statement may see as it was before
     and r.state <> 'ended'
     and exists (select 1 from fleet.tasks t where t.task_id = $1 and t.lease = $3 and t.holder = $4)
  returning r.task_id, r.run_lease, r.attempt
)
insert into fleet.task_logs (task_id, lease, attempt, "offset", data)
select task_id, run_lease, attempt, $5, $6::bytea from moved
