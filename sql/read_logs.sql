-- Purpose: output of one lease from an offset on: so many chunks, and of them no more than so many bytes, but at least what is
--          sure to hold a whole character. A chunk that the offset cuts is returned whole; the caller cuts it.
-- Locks:   none.
-- Index:   task_logs_pkey.
-- $1 uuid: task; $2 bigint: lease; $3 bigint: offset; $4 bigint: how many chunks; $5 bigint: how many bytes.
-- `found` is how many chunks there were before those over the bytes were left out.
select lease, attempt, "offset", at, data, found
  from (
    select c.*, count(*) over () as found, c."offset" - greatest($3, min(c."offset") over ()) as before
      from (
        select lease, attempt, "offset", at, data
          from fleet.task_logs
         where task_id = $1 and lease = $2 and "offset" + length(data) > $3
         order by "offset"
         limit $4) c) c
 where before + length(data) <= $5 or before < 4
 order by "offset"
