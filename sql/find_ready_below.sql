-- Purpose: the poll that is the truth behind all hints: whether something is ready below the places from which claims
--          read, in each lane and priority the first such task.
-- Locks:   none.
-- Index:   tasks_ready_pull; lanes_pkey.
-- $1 bigint[]: lanes, with $2 smallint[]: a priority, $3 bigint[]: below which seq.
select p.lane_id, p.priority, t.seq
  from unnest($1::bigint[], $2::smallint[], $3::bigint[]) as p(lane_id, priority, low)
  join fleet.lanes l on l.lane_id = p.lane_id
 cross join lateral (
   select r.seq
     from fleet.tasks r
    where r.lane_id = p.lane_id and r.priority = p.priority and r.seq < p.low
      and r.status = 'created' and r.execution_mode in ('http_pull', 'undecided')
    order by r.seq
    limit 1) t
 where l.paused_at is null
