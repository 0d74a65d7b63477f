-- Purpose: the xid below which every transaction that writes events has ended, so that a reader who goes by
--          (xid, event_id) skips none that commits late. A writer locks a relation of this schema before it has an xid;
--          transactions elsewhere in the cluster do not count. Read the events in a LATER statement: its snapshot then
--          sees all that had ended here.
-- Locks:   none.
-- Index:   none (pg_locks).
with now_at as (
  select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax
),
writer as (
  -- pg_locks shows 32 bits of an xid; the rest is xmax's, or one less after a wrap.
  select min(case when w.full_xid > w.xmax then w.full_xid - 4294967296 else w.full_xid end) as xid
    from (select n.xmax, (n.xmax >> 32 << 32) + x.transactionid::text::bigint as full_xid
            from now_at n, pg_locks x
           where x.locktype = 'transactionid' and x.mode = 'ExclusiveLock' and x.granted
             and exists (select 1
                           from pg_locks r
                           join pg_class c on c.oid = r.relation
                          where r.pid = x.pid and r.locktype = 'relation'
                            and r.database = (select oid from pg_database where datname = current_database())
                            and c.relnamespace = 'fleet'::regnamespace
                            and r.mode <> 'AccessShareLock')) w
)
select least(now_at.xmax, writer.xid)::text as horizon from now_at, writer
