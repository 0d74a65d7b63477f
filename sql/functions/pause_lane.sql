-- Purpose: pauses the lane of a set of requirements: its tasks are not handed out. What runs goes on; pins are exempt.
-- Locks:   the lane, until the caller's transaction ends. Claims do not wait for it.
create or replace function fleet.pause_lane(capabilities text[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform fleet.set_lane(capabilities, true);
end
$$;
comment on function fleet.pause_lane(text[]) is 'Stops handing out the tasks that require exactly these capabilities.';
