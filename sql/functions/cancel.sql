-- Purpose: calls a task off, as POST …/cancel does; the statement is sql/cancel_task.sql itself.
-- Locks:   the task, until the caller's transaction ends; then appends.
create or replace function fleet.cancel(task text, reason text default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  did record;
begin
  if octet_length(reason) > 2000 then
    perform fleet.refuse('ZF400', format('reason is %s bytes long; at most 2000 are allowed', octet_length(reason)), 'Shorten it.');
  end if;
  select * into did from fleet.cancel_task(fleet.task_id_of(task), 'sql:' || session_user, reason);
  if did.applied is not true then
    perform fleet.refuse('ZF409', format('a task that is %s cannot be cancelled', did.status), 'It has ended already.');
  end if;
  perform pg_notify('fleet_wake', 'ready');
  perform pg_notify('fleet_wake', 'revoked');
end
$$;
comment on function fleet.cancel(text, text) is 'Calls a task off, named by id or key. Its holder is told, a run on a host is ended.';
