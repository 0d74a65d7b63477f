-- How long each view takes to plan and to run to its end, in milliseconds.
create temp table took (view text, milliseconds float8);
do $$
declare
  view text;
  plan json;
begin
  for view in select viewname from pg_views where schemaname = 'fleet' loop
    execute format('explain (analyze, timing off, format json) select * from fleet.%I', view) into plan;
    insert into took
    values (view, (plan -> 0 ->> 'Planning Time')::float8 + (plan -> 0 ->> 'Execution Time')::float8);
  end loop;
end
$$;
select coalesce(json_object_agg(view, milliseconds), '{}') from took;
