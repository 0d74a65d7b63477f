-- Purpose: ends the pause of a lane.
-- Locks:   the lane, until the caller's transaction ends.
create or replace function fleet.resume_lane(capabilities text[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform fleet.set_lane(capabilities, false);
end
$$;
comment on function fleet.resume_lane(text[]) is 'Hands out again the tasks that require exactly these capabilities.';
