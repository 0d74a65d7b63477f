-- Purpose: what pausing and resuming have in common; the statement is sql/set_lane_paused.sql itself.
create or replace function fleet.set_lane(capabilities text[], paused boolean) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  wanted text[];
begin
  if capabilities is null or array_position(capabilities, null) is not null then
    perform fleet.refuse('ZF400', 'capabilities must be a set of texts', 'For example: array[''agent:code'']; ''{}'' is the lane without requirements.');
  end if;
  wanted := fleet.required_capabilities(capabilities);
  if cardinality(wanted) <> (select count(distinct c) from unnest(capabilities) c) then
    perform fleet.refuse('ZF400', 'capabilities holds something that is no requirement, or one twice', 'Requirements begin with agent: or agent/.');
  end if;
  if not exists (select 1 from fleet.set_lane_paused(wanted, paused)) then
    perform fleet.refuse('ZF404', format('there is no lane for %s', wanted),
                         'A lane is made by the first task that requires this set, or by POST /api/v1/queues/pause. fleet.lane_reasons lists them.');
  end if;
  perform pg_notify('fleet_wake', 'ready');
end
$$;
comment on function fleet.set_lane(text[], boolean) is 'Inner part of pause_lane and resume_lane.';
