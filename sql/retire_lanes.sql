-- Purpose: lanes that have not been seen in use for a day, are not paused, and that no task refers to now, are retired: still
--          there, but given to no new task. The others are seen in use now, so that each is looked at once a day.
-- Locks:   lanes by set.
-- Index:   lanes are few; tasks are read once, in full, on a day when some lane is old.
-- $1 bigint: at most this many.
with old as materialized (
  select lane_id
    from fleet.lanes
   where seen_at < now() - interval '1 day' and retired_xid is null and paused_at is null
   order by capabilities
   limit $1
     for no key update skip locked
),
used as materialized (
  select distinct t.lane_id from fleet.tasks t where t.lane_id = any (array(select lane_id from old))
),
looked as (
  update fleet.lanes l
     set seen_at = now(), retired_xid = case when u.lane_id is null then pg_current_xact_id() end
    from old o
    left join used u on u.lane_id = o.lane_id
   where l.lane_id = o.lane_id
  returning l.retired_xid
)
select count(*) filter (where retired_xid is not null) as retired from looked
