-- When the tasks that require :capability were committed, by task, in microseconds since 1970. The moment is that of the commit's
-- record: before it is on disk, and before anybody is told.
select coalesce(json_object_agg(e.task_id, (extract(epoch from pg_xact_commit_timestamp(e.xid::xid)) * 1e6)::bigint), '{}')
  from fleet.lanes l
  join fleet.tasks t using (lane_id)
  join fleet.task_events e on e.task_id = t.task_id and e.type = 'created'
 where l.capabilities = array[:'capability'];
