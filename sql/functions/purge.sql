-- Purpose: forgets what ended before a moment, as the coordinator's retention does, and by the same statements: tasks with
--          all that hangs on them, deliveries and idempotency keys. Never what has not ended, nor an issue's task while the
--          issue is open. Events and output go with their weekly partitions.
-- Locks:   the rows that go, until the caller's transaction ends; rows that somebody else holds are left for the next time.
create or replace function fleet.purge(before timestamptz) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  secs   double precision;
  place  uuid := '00000000-0000-0000-0000-000000000000';
  step   record;
  purged bigint := 0;
begin
  if before is null or not isfinite(before) or before > now() then
    perform fleet.refuse('ZF400', 'before must be a moment in the past', 'For example: now() - interval ''30 days''.');
  end if;
  secs := extract(epoch from now() - before);
  loop
    select * into step from fleet.purge_tasks(secs, place, true, 5000);
    exit when step.last_id is null;
    place := step.last_id;
    purged := purged + step.purged;
  end loop;
  while (select d.deleted from fleet.delete_old_deliveries(secs, 5000) d) > 0 loop end loop;
  while (select d.deleted from fleet.delete_old_keys(secs, 5000) d) > 0 loop end loop;
  return purged;
end
$$;
comment on function fleet.purge(timestamptz) is 'Forgets tasks that ended before this moment, with all that hangs on them; answers how many. Never a live one.';
