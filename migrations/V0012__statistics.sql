-- How often the large tables are analyzed: when as much of them has changed as they hold, and of 6,000 rows instead of 30,000.
-- Their plans hang on their indexes, not on their statistics; looked at every few seconds (`autovacuum_naptime`, see
-- docs/performance.md), as a queue's dead rows want it, they were analyzed each time: a fifth of all tasks per second, measured,
-- and an analysis holds back vacuum while it reads. Twenty values tell all words that statuses, modes and kinds of events can be.
alter table fleet.tasks set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000);
alter table fleet.task_specs set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000,
                                  autovacuum_vacuum_insert_threshold = 10000);
alter table fleet.receipts set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000,
                                autovacuum_vacuum_insert_threshold = 10000);
-- Sessions are changed in place, which cleans up after itself; their statistics never tell anything new.
alter table fleet.sessions set (autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 1,
                                autovacuum_analyze_threshold = 10000);
do $$
declare
  name text;
begin
  for name in select inhrelid::regclass::text from pg_inherits where inhparent = 'fleet.task_events'::regclass loop
    execute format('alter table %s set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000)', name);
  end loop;
  for name in
    select format('alter table %s %s', c.oid::regclass,
                  string_agg(format('alter column %I set statistics 20', a.attname), ', '))
      from pg_class c
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     where c.oid in ('fleet.tasks'::regclass, 'fleet.task_specs'::regclass, 'fleet.receipts'::regclass)
        or c.oid in (select inhrelid from pg_inherits where inhparent = 'fleet.task_events'::regclass)
     group by c.oid loop
    execute name;
  end loop;
end
$$;

-- As before; and the partitions to come have it, too.
create or replace function fleet.make_partitions(ahead interval) returns integer
language plpgsql set search_path = fleet, pg_temp as $$
declare
  parent text;
  week   timestamptz;
  name   text;
  made   integer := 0;
begin
  perform pg_advisory_xact_lock(hashtextextended('fleet.make_partitions', 0));
  foreach parent in array array['task_events', 'task_logs'] loop
    week := date_trunc('week', now(), 'UTC');
    while week < now() + ahead loop
      name := format('%s_%s', parent, to_char(week at time zone 'UTC', 'IYYY"w"IW'));
      if to_regclass(format('fleet.%I', name)) is null then
        execute format('create table fleet.%I (like fleet.%I including defaults including constraints)
                        with (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000)', name, parent);
        execute (select format('alter table fleet.%I %s', name,
                               string_agg(format('alter column %I set statistics 20', a.attname), ', '))
                   from pg_attribute a
                  where a.attrelid = format('fleet.%I', name)::regclass and a.attnum > 0 and not a.attisdropped);
        execute format('alter table fleet.%I attach partition fleet.%I for values from (%L) to (%L)',
                       parent, name, week, week + interval '7 days');
        made := made + 1;
      end if;
      week := week + interval '7 days';
    end loop;
  end loop;
  return made;
end
$$;

-- The events of a task, without their order, which is made when they are read: a task has few, and each entry is smaller, in the
-- index and in the log. Locks out writers of the event log for one scan of it, as V0008 did.
create index task_events_of on fleet.task_events (task_id);
drop index fleet.task_events_task;
alter index fleet.task_events_of rename to task_events_task;
