-- Purpose: whether fleet.tasks should be vacuumed now, before autovacuum next looks: when so many tasks were taken that what
--          they left in the ready indexes fills a fifth of their pages, of which each has room for 200. Where there are more, a
--          vacuum reads more, and there is more room to go on. Not where it has just been vacuumed or is being; nor
--          where this account may not. And how many rows the last vacuum had to leave, or have died since; and how often it
--          was vacuumed by hand, to tell a vacuum from one that was skipped.
-- Locks:   none.
-- Index:   none.
-- $1 bigint: tasks that were taken since.
select $1::bigint > 40 * pg_relation_size('fleet.tasks_ready_pull') / 8192
         and coalesce(greatest(pg_stat_get_last_vacuum_time(t.oid), pg_stat_get_last_autovacuum_time(t.oid))
                        < now() - interval '0.3 s', true)
         and pg_has_role(t.relowner, 'usage')
         and not exists (select from pg_locks l
                          where l.relation = t.oid and l.mode = 'ShareUpdateExclusiveLock'
                            and l.database = (select oid from pg_database where datname = current_database())) as is_due,
       pg_stat_get_dead_tuples(t.oid) as dead, pg_stat_get_vacuum_count(t.oid) as vacuums
  from pg_class t
 where t.oid = 'fleet.tasks'::regclass
