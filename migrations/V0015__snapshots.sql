-- What a snapshot that somebody holds leaves behind, and how long the server's own hold one.
--
-- While it lasts a session has dozens of versions, and as many entries in its index, through which each of its locks goes. Afterwards
-- the threshold of V0012 kept vacuum away: 64 sessions do not have 1,000 dead rows. Usually there are one or two each, since they
-- are changed in place.
alter table fleet.sessions set (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 3);

-- While a table is analyzed, no vacuum can remove what has ended since. At the default pace, with `vacuum_cost_page_hit = 10` (see
-- docs/dba.md, Tuning), the event log's newest partition took 0.8 s, of which the processor worked for 0.05: under load the ready
-- indexes grew by a third meanwhile, for good. Hence the pace of task_specs and receipts (V0013): less than a tenth of a second.
do $$
declare
  name text;
begin
  for name in
    select inhrelid::regclass::text
      from pg_inherits
     where inhparent in ('fleet.task_events'::regclass, 'fleet.task_logs'::regclass) loop
    execute format('alter table %s set (autovacuum_vacuum_cost_limit = 2000)', name);
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
                        with (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 10000,
                              autovacuum_vacuum_cost_limit = 2000)', name, parent);
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
