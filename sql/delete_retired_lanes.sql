-- Purpose: drops lanes that were retired an hour ago, once no transaction is left that may have read them before, and no
--          task refers to them. One that some task refers to after all is taken back.
-- Locks:   lanes by set.
-- Index:   lanes are few; tasks are read once, in full, when some lane is to be dropped.
-- $1 bigint: at most this many.
with over as materialized (
  select lane_id
    from fleet.lanes
   where retired_xid is not null and paused_at is null and seen_at < now() - interval '1 hour'
     and retired_xid < pg_snapshot_xmin(pg_current_snapshot())
   order by capabilities
   limit $1
     for update skip locked
),
used as materialized (
  select distinct t.lane_id from fleet.tasks t where t.lane_id = any (array(select lane_id from over))
),
back as (
  update fleet.lanes l set retired_xid = null, seen_at = now() from used u where l.lane_id = u.lane_id
),
gone as (
  delete from fleet.lanes l
   using over o
   where l.lane_id = o.lane_id and l.retired_xid is not null and not exists (select 1 from used u where u.lane_id = o.lane_id)
  returning l.lane_id
)
select count(*) as dropped from gone
