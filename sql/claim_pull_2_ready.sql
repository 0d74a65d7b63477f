-- Purpose: the claim by dequeue: for each set of capabilities that waits, the first k tasks that it satisfies. The lane is
--          first in the index, so tasks that nobody here can take cost nothing; and a lane is read from where its first
--          ready task was, so that what was taken before is not read again while an old snapshot holds back vacuum.
-- Locks:   none; claim_pull_3_take locks only what is going to be taken.
-- Index:   tasks_ready_pull; lanes_pkey.
-- $1 integer[]: numbers of sets, with $2 bigint[]: a lane that the set satisfies, $3 smallint[]: a priority,
-- $4 bigint[]: from which seq on; $5 bigint: k.
with place as materialized (
  select p.set_no, p.lane_id, p.priority, p.low
    from unnest($1::integer[], $2::bigint[], $3::smallint[], $4::bigint[]) as p(set_no, lane_id, priority, low)
    join fleet.lanes l on l.lane_id = p.lane_id
   where l.paused_at is null
)
select c.set_no, c.lane_id, c.priority, c.seq, c.task_id
  from (select distinct set_no from place) s
 cross join lateral (
   select p.set_no, p.lane_id, p.priority, t.seq, t.task_id
     from place p
    cross join lateral (
      select r.task_id, r.seq
        from fleet.tasks r
       where r.lane_id = p.lane_id and r.priority = p.priority and r.seq >= p.low
         and r.status = 'created' and r.execution_mode in ('http_pull', 'undecided')
       order by r.seq
       limit $5::bigint) t
    where p.set_no = s.set_no
    order by p.priority desc, t.seq
    limit $5::bigint) c
 order by c.set_no, c.priority desc, c.seq
