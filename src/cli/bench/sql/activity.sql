-- What the database has done so far, and how large things are, in bytes.
select json_build_object(
         'transactions', (select xact_commit + xact_rollback from pg_stat_database where datname = current_database()),
         -- Nobody uses this one: autovacuum looks into each database as often.
         'looks', (select xact_commit + xact_rollback from pg_stat_database where datname = 'postgres'),
         'commits', (select xact_commit from pg_stat_database where datname = current_database()),
         'wal', pg_current_wal_lsn() - '0/0'::pg_lsn,
         'tables', (select sum(pg_table_size(c.oid)) from pg_class c
                     where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r'),
         'indexes', (select sum(pg_indexes_size(c.oid)) from pg_class c
                      where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r'),
         'ready_indexes', pg_relation_size('fleet.tasks_ready_pull') + pg_relation_size('fleet.tasks_ready_push'));
