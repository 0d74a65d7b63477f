-- Purpose: the next events after a place, up to the horizon.
-- Locks:   none.
-- Index:   task_events_pkey.
-- $1 text: xid of the place; $2 bigint: event_id of the place; $3 text: horizon; $4 bigint: how many.
select xid::text as xid, event_id, task_id, at, type, from_status, to_status, actor, lease, attempt, detail
  from fleet.task_events
 where (xid, event_id) > ($1::text::xid8, $2::bigint)
   and xid < $3::text::xid8
 order by xid, event_id
 limit $4::bigint
