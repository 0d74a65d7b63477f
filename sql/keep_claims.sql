-- Purpose: claims that are told to their holder once more, since the same request came again. From then on they stand,
--          whatever becomes of the first reply: it may be another replica's to undo them.
-- Locks:   tasks by id.
-- Index:   tasks_pkey.
-- $1 uuid[]: tasks, each once; $2 bigint[]: lease; $3 uuid[]: session.
with told as materialized (
  select t.task_id
    from unnest($1::uuid[], $2::bigint[], $3::uuid[]) as i(task_id, lease, holder)
    join fleet.tasks t on t.task_id = i.task_id and t.lease = i.lease and t.holder = i.holder
   order by t.task_id
     for no key update of t
)
update fleet.tasks t
   set last_activity_at = greatest(clock_timestamp(), t.assigned_at + interval '1 microsecond')
  from told
 where t.task_id = told.task_id
returning t.task_id
