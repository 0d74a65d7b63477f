-- How often the large tables are analyzed: when as much of them has changed as they hold. Their plans hang on their indexes, not
-- on their statistics; and looked at every few seconds (`autovacuum_naptime`, see docs/performance.md), as a queue's dead rows
-- want it, they were analyzed each time: a fifth of all tasks per second, measured.
alter table fleet.tasks set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000);
alter table fleet.task_specs set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000,
                                  autovacuum_vacuum_insert_threshold = 10000);
alter table fleet.receipts set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000,
                                autovacuum_vacuum_insert_threshold = 10000);
do $$
declare
  part regclass;
begin
  for part in select inhrelid::regclass from pg_inherits where inhparent = 'fleet.task_events'::regclass loop
    execute format('alter table %s set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000)', part);
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
