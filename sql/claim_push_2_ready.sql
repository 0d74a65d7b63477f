-- Purpose: the claim by dispatch (phase 1), second statement: for each locked host agent, the first k tasks that it
--          satisfies.
-- Locks:   none; claim_push_3_take locks only what is going to be taken.
-- Index:   tasks_ready_push.
-- $1 jsonb: array of arrays of capabilities; $2 bigint: k.
select s.ord::integer as set_no, c.task_id, c.lane_id
  from jsonb_array_elements($1::jsonb) with ordinality as s(names, ord)
 cross join lateral (select array(select jsonb_array_elements_text(s.names)) as offered) o
 cross join lateral (
   select t.task_id, t.lane_id, t.priority, t.seq
     from fleet.lanes l
    cross join lateral (
      select r.task_id, r.lane_id, r.priority, r.seq
        from fleet.tasks r
       where r.lane_id = l.lane_id and r.status = 'created' and r.execution_mode in ('ssh_cli', 'undecided')
       order by r.priority desc, r.seq
       limit $2::bigint) t
    where l.paused_at is null and l.capabilities <@ o.offered
    order by t.priority desc, t.seq
    limit $2::bigint) c
 order by s.ord, c.priority desc, c.seq
