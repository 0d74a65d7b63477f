-- How long each function takes, called once for one task, agent or lane, in milliseconds. Each is undone.
create temp table calling (what text, before text, call text);
insert into calling
select c.what, format(c.before, t.key), format(c.call, t.key)
  from (select key from fleet.tasks where status = 'created' limit 1) t
 cross join (values
   ('fleet.enqueue()', '', $$select fleet.enqueue('Bench', 'A text.', labels => '{agent:foreign-001}')$$),
   ('fleet.cancel()', '', 'select fleet.cancel(%L)'),
   ('fleet.retry()', 'select fleet.cancel(%L)', 'select fleet.retry(%L)'),
   ('fleet.assign()', '', $$select fleet.assign(%L, 'bench-agent-1', force => true)$$),
   ('fleet.pause_lane()', '', $$select fleet.pause_lane('{agent:foreign-001}')$$),
   ('fleet.resume_lane()', $$select fleet.pause_lane('{agent:foreign-001}')$$, $$select fleet.resume_lane('{agent:foreign-001}')$$),
   ('fleet.drain_agent()', '', $$select fleet.drain_agent('bench-agent-1')$$),
   ('fleet.resume_agent()', $$select fleet.drain_agent('bench-agent-1')$$, $$select fleet.resume_agent('bench-agent-1')$$),
   ('fleet.purge(), nothing is that old', '', $$select fleet.purge(now() - interval '30 days')$$)) c(what, before, call);
create temp table took (what text, milliseconds float8);
do $$
declare
  c     record;
  began timestamptz;
  spent float8;
begin
  for c in select * from calling cross join generate_series(1, 2) as warm_first loop
    begin
      if c.before <> '' then
        execute c.before;
      end if;
      began := clock_timestamp();
      execute c.call;
      spent := extract(epoch from clock_timestamp() - began) * 1000;
      raise exception using errcode = 'ZB000';
    exception when sqlstate 'ZB000' then
      delete from took where what = c.what;
      insert into took values (c.what, spent);
    end;
  end loop;
end
$$;
select coalesce(json_object_agg(what, milliseconds), '{}') from took;
