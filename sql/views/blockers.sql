-- Purpose: who holds back vacuum, and who waits for whose lock in this database.
-- Index:   none; the statistics views.
create or replace view fleet.blockers as
with backend as materialized (
  select a.pid, a.usename, a.application_name, a.state, a.xact_start, a.query_start, a.backend_xmin, a.backend_xid,
         a.wait_event_type, a.query, age(coalesce(a.backend_xmin, a.backend_xid)) as xids
    from pg_stat_activity a
   where a.datname = current_database() and a.pid <> pg_backend_pid()
)
select 'holds_back_vacuum' as problem, b.pid, b.usename::text as role, b.application_name, b.state,
       now() - b.xact_start as for_so_long, b.xids::bigint as transactions_since, null::integer[] as waits_for,
       null::text as on_table, left(b.query, 200) as query,
       format('select pg_terminate_backend(%s)', b.pid) as mend
  from backend b
 where coalesce(b.backend_xmin, b.backend_xid) is not null
   and (b.xact_start < now() - interval '1 minute' or b.xids > 100000)
union all
select 'prepared_transaction', null, p.owner::text, p.gid, 'prepared', now() - p.prepared, age(p.transaction)::bigint, null, null, null,
       format('rollback prepared %L', p.gid)
  from pg_prepared_xacts p
 where p.database = current_database()
union all
select 'replication_slot', s.active_pid, null, s.slot_name::text, case when s.active then 'active' else 'inactive' end, null,
       greatest(age(s.xmin), age(s.catalog_xmin))::bigint, null, null, null,
       format('select pg_drop_replication_slot(%L)', s.slot_name)
  from pg_replication_slots s
 where (s.xmin is not null or s.catalog_xmin is not null) and greatest(age(s.xmin), age(s.catalog_xmin)) > 100000
union all
select 'waits_for_lock', b.pid, b.usename::text, b.application_name, b.state, now() - b.query_start, null,
       pg_blocking_pids(b.pid),
       (select string_agg(distinct l.relation::regclass::text, ', ')
          from pg_locks l where l.pid = b.pid and not l.granted and l.relation is not null),
       left(b.query, 200),
       format('select pg_terminate_backend(pid) from unnest(pg_blocking_pids(%s)) pid', b.pid)
  from backend b
 where b.pid in (select l.pid from pg_locks l where not l.granted);

comment on view fleet.blockers is 'Who holds back vacuum, and who waits for whose lock. Empty while all is well.';
comment on column fleet.blockers.problem is 'holds_back_vacuum (a transaction open for over a minute, or over 100,000 others long), prepared_transaction, replication_slot, waits_for_lock.';
comment on column fleet.blockers.pid is 'The process of the server that has the problem or is it.';
comment on column fleet.blockers.role is 'Its role.';
comment on column fleet.blockers.application_name is 'Its name: agent-fleet/… is a replica; for the others the name of the transaction or of the slot.';
comment on column fleet.blockers.state is 'active, idle in transaction and so on.';
comment on column fleet.blockers.for_so_long is 'How long the transaction has been open, or the lock been waited for.';
comment on column fleet.blockers.transactions_since is 'How many transactions have begun since the oldest that it can still see: what vacuum must keep.';
comment on column fleet.blockers.waits_for is 'The processes that it waits for.';
comment on column fleet.blockers.on_table is 'The table whose lock it waits for; null for a row''s.';
comment on column fleet.blockers.query is 'What it does; needs pg_read_all_stats for other roles'' queries.';
comment on column fleet.blockers.mend is 'A statement that ends the problem, for whoever may run it. Look first.';
