-- Purpose: forgets webhook deliveries that came long ago: the forge does not repeat them any more. The newest state of each
--          issue is kept in forge_issues, for ever: by it an old delivery that is replayed is known to be old.
-- Locks:   those rows, SKIP LOCKED.
-- Index:   webhook_deliveries_received.
-- $1 double precision: older than so many seconds; $2 integer: at most this many.
with gone as (
  delete from fleet.webhook_deliveries
   where delivery_id = any (array(
     select delivery_id from fleet.webhook_deliveries
      where received_at < now() - make_interval(secs => $1)
      order by received_at
      limit $2::integer
        for update skip locked))
  returning 1)
select count(*) as deleted from gone
