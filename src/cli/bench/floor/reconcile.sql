-- What the floor left in its lane. :lane is its capability.
select json_build_object('completed', count(*) filter (where t.status = 'completed'), 'left', count(*) filter (where t.status <> 'completed'))
  from fleet.tasks t join fleet.lanes l using (lane_id)
 where l.capabilities = array[:'lane'];
