-- How long each view takes to plan and to run to its end, read as docs/dba.md says, in milliseconds. Each plan is made once
-- before, so that a new session's empty caches are not in the figure.
create temp table reading (what text, query text, jit text default current_setting('jit'));
insert into reading (what, query)
select viewname, format('select * from fleet.%I', viewname)
  from pg_views where schemaname = 'fleet' and viewname not in ('waiting_tasks', 'task_timeline');
insert into reading (what, query)
select r.what, format(r.query, t.key)
  from (select key from fleet.tasks where status = 'created' limit 1) t
 cross join (values ('waiting_tasks, 100 rows', 'select * from fleet.waiting_tasks limit 100'),
                    ('waiting_tasks, one key', 'select * from fleet.waiting_tasks where key = %L'),
                    ('task_timeline, one key', 'select * from fleet.task_timeline where key = %L'),
                    ('waiting_tasks, the 100 oldest', 'select * from fleet.waiting_tasks order by seq limit 100'),
                    ('waiting_tasks, all rows', 'select * from fleet.waiting_tasks')) r(what, query);
insert into reading select what || ', jit off', query, 'off' from reading where what = 'waiting_tasks, all rows';
create temp table took (what text, milliseconds float8);
do $$
declare
  r    record;
  plan json;
begin
  for r in select * from reading loop
    perform set_config('jit', r.jit, true);
    execute 'explain ' || r.query;
    execute 'explain (analyze, timing off, format json) ' || r.query into plan;
    insert into took
    values (r.what, (plan -> 0 ->> 'Planning Time')::float8 + (plan -> 0 ->> 'Execution Time')::float8);
  end loop;
end
$$;
select coalesce(json_object_agg(what, milliseconds), '{}') from took;
