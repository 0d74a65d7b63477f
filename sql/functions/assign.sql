-- Purpose: pins a task to an agent or host, as POST …/assign does; the statements are sql/find_target.sql and
--          sql/assign_task.sql themselves.
-- Locks:   the task, until the caller's transaction ends; then appends.
create or replace function fleet.assign(task text, target text, force boolean default false,
                                        reservation interval default interval '10 minutes')
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  id   uuid := fleet.task_id_of(task);
  goal record;
  did  record;
begin
  if reservation is null or reservation <= interval '0' or reservation > interval '30 days' then
    perform fleet.refuse('ZF400', 'reservation must be over 0 and at most 30 days', 'The default is 10 minutes.');
  end if;
  -- An agent goes before a host.
  select * into goal from fleet.find_target(target, id) f order by f.kind limit 1;
  if goal.kind is null then
    perform fleet.refuse('ZF404', format('%L is neither a registered agent nor a known host', left(target, 200)),
                         'fleet.agent_load and fleet.host_load list them; a host agent is host_id/agent_type.');
  end if;
  if not goal.capable and force is not true then
    perform fleet.refuse('ZF400', format('%L lacks something of what the task requires', target),
                         'force => true assigns it all the same.');
  end if;
  select * into did
    from fleet.assign_task(id, target, case goal.kind when 'agent' then 'http_pull' else 'ssh_cli' end,
                           extract(epoch from reservation)::double precision, 'sql:' || session_user);
  if did.applied is not true then
    perform fleet.refuse('ZF409', format('a task that is %s cannot be assigned', did.status), 'Only one that waits can.');
  end if;
  perform pg_notify('fleet_wake', 'ready');
end
$$;
comment on function fleet.assign(text, text, boolean, interval) is 'Reserves a waiting task for an agent (agent_id) or host (host_id, or host_id/agent_type).';
