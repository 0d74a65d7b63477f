-- Purpose: how large each table is, what is dead in it, and when it was last cleaned. Partitions are added up.
-- Index:   none; the catalogues.
create or replace view fleet.storage as
with part as materialized (
  select coalesce(p.relname, c.relname) as table_name, p.oid is not null as partitioned, c.oid, c.reltuples, c.reltoastrelid
    from pg_class c
    left join pg_inherits i on i.inhrelid = c.oid
    left join pg_class p on p.oid = i.inhparent
   where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r'
)
select table_name::text, count(*) filter (where partitioned) as partitions,
       sum(greatest(reltuples, 0))::bigint as rows_estimated,
       sum(pg_total_relation_size(oid))::bigint as total_bytes,
       pg_size_pretty(sum(pg_total_relation_size(oid))) as total,
       pg_size_pretty(sum(pg_relation_size(oid))) as heap, pg_size_pretty(sum(pg_indexes_size(oid))) as indexes,
       sum(pg_stat_get_live_tuples(oid))::bigint as live_rows, sum(pg_stat_get_dead_tuples(oid))::bigint as dead_rows,
       round(100.0 * sum(pg_stat_get_dead_tuples(oid))
             / nullif(sum(pg_stat_get_live_tuples(oid) + pg_stat_get_dead_tuples(oid)), 0), 1) as dead_percent,
       max(greatest(pg_stat_get_last_vacuum_time(oid), pg_stat_get_last_autovacuum_time(oid))) as last_vacuum,
       max(greatest(pg_stat_get_last_analyze_time(oid), pg_stat_get_last_autoanalyze_time(oid))) as last_analyze
  from part
 group by table_name;

comment on view fleet.storage is 'How large each table is, what is dead in it, and when it was last cleaned.';
comment on column fleet.storage.table_name is 'The table.';
comment on column fleet.storage.partitions is 'How many partitions it has; 0 for an ordinary table.';
comment on column fleet.storage.rows_estimated is 'Rows. An estimate: as of the last vacuum or analyze.';
comment on column fleet.storage.total_bytes is 'Bytes, with indexes and long values.';
comment on column fleet.storage.total is 'The same for people.';
comment on column fleet.storage.heap is 'The rows alone.';
comment on column fleet.storage.indexes is 'The indexes alone.';
comment on column fleet.storage.live_rows is 'Rows. An estimate, by the statistics collector.';
comment on column fleet.storage.dead_rows is 'Row versions that vacuum has yet to remove. An estimate.';
comment on column fleet.storage.dead_percent is 'Of all row versions.';
comment on column fleet.storage.last_vacuum is 'The last vacuum of the table or of any partition, by hand or by itself; null: not since the statistics were reset.';
comment on column fleet.storage.last_analyze is 'The same for analyze.';
