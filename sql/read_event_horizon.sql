-- Purpose: the xid below which every transaction that may write events has ended, so that a reader who goes by
--          (xid, event_id) skips none that commits late. Every transaction with an xid counts, whatever it has done so far:
--          one that wrote elsewhere may still call fleet.enqueue(). Only those of other databases do not: they would
--          freeze the stream, and cannot write here. Read the events in a LATER statement: its snapshot then sees all that
--          had ended here.
-- Locks:   none.
-- Index:   none (the snapshot, pg_locks, pg_stat_activity).
with running as materialized (
  select x::text::bigint as xid from pg_snapshot_xip(pg_current_snapshot()) x
),
elsewhere as materialized (
  -- pg_locks shows 32 bits of an xid.
  select l.transactionid::text::bigint as xid32
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and a.datname <> current_database()
)
select coalesce((select min(r.xid) from running r where r.xid & 4294967295 not in (select xid32 from elsewhere)),
                pg_snapshot_xmax(pg_current_snapshot())::text::bigint)::text as horizon
