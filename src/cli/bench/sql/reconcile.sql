-- What became of the tasks that require :capability, counted by what the database has of them.
select json_build_object(
         'tasks', count(*),
         'completed', count(*) filter (where t.status = 'completed'),
         'claims', coalesce(sum(e.claims), 0),
         'completions', coalesce(sum(e.completions), 0),
         'receipts', coalesce(sum(r.receipts), 0))
  from fleet.lanes l
  join fleet.tasks t using (lane_id)
  left join lateral (select count(*) filter (where type = 'claimed') as claims,
                            count(*) filter (where type = 'completed') as completions
                       from fleet.task_events e where e.task_id = t.task_id) e on true
  left join lateral (select count(*) as receipts from fleet.receipts r where r.task_id = t.task_id) r on true
 where l.capabilities = array[:'capability'];
