-- Purpose: the poll that is the truth behind all hints: whether something is ready below the places from which claims
--          read, in each lane and priority the first such task; and in which of them nothing is left, so that it need not be
--          read again.
-- Locks:   none.
-- Index:   tasks_ready_pull; lanes_pkey.
-- $1 bigint[]: lanes, with $2 smallint[]: a priority, $3 bigint[]: below which seq, the largest one where nothing is read.
-- Without seq where nothing is left.
select p.lane_id, p.priority, t.seq
  from unnest($1::bigint[], $2::smallint[], $3::bigint[]) as p(lane_id, priority, low)
  join fleet.lanes l on l.lane_id = p.lane_id
  left join lateral (
   select r.seq
     from fleet.tasks r
    where r.lane_id = p.lane_id and r.priority = p.priority and r.seq < p.low
      and r.status = 'created' and r.execution_mode in ('http_pull', 'undecided')
    order by r.seq
    limit 1) t on true
 where l.paused_at is null
   and (t.seq is not null
        or p.low < 9223372036854775807
           and not exists (select
                             from fleet.tasks r
                            where r.lane_id = p.lane_id and r.priority = p.priority and r.seq >= p.low
                              and r.status = 'created' and r.execution_mode in ('http_pull', 'undecided')))
