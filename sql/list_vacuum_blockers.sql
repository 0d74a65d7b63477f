-- Purpose: who holds back vacuum in this database: transactions, prepared transactions and replication slots that are older
--          than they should be. What the account may not see of others is null.
-- Locks:   none.
-- Index:   none.
-- $1 double precision: seconds that a transaction may be open.
select 'transaction' as kind, a.pid, coalesce(nullif(a.application_name, ''), a.usename::text, 'unknown') as name, a.state,
       extract(epoch from now() - a.xact_start)::double precision as age_secs
  from pg_stat_activity a
 where a.datname = current_database() and a.pid <> pg_backend_pid() and (a.backend_xmin is not null or a.backend_xid is not null)
   and a.backend_type is distinct from 'autovacuum worker'
   and (a.xact_start < now() - make_interval(secs => $1)
        -- another account's, which only pg_read_all_stats sees in full
        or (a.xact_start is null and age(coalesce(a.backend_xmin, a.backend_xid)) > 100000))
union all
select 'prepared transaction', null, p.gid, null, extract(epoch from now() - p.prepared)::double precision
  from pg_prepared_xacts p
 where p.database = current_database() and p.prepared < now() - make_interval(secs => $1)
union all
select 'replication slot', r.active_pid, r.slot_name::text, null, null
  from pg_replication_slots r
 where greatest(age(r.xmin), age(r.catalog_xmin)) > 10000000
