-- Purpose: pauses a lane or ends its pause. Zero rows mean that there is no such lane.
-- Locks:   the lane.
-- Index:   lanes_capabilities_key.
-- $1 text[]: the sorted set; $2 boolean: whether it is paused from now on.
update fleet.lanes
   set paused_at = case when $2::boolean then coalesce(paused_at, now()) end
 where capabilities = $1::text[]
returning lane_id, paused_at
