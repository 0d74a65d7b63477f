-- Purpose: ends the drain of an agent.
-- Locks:   the agent, until the caller's transaction ends.
create or replace function fleet.resume_agent(agent_id text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  update fleet.agents a set drained_at = null where a.agent_id = resume_agent.agent_id;
  if not found then
    perform fleet.refuse('ZF404', format('there is no agent %L', left(agent_id, 200)), 'fleet.agent_load lists them.');
  end if;
  perform pg_notify('fleet_wake', 'ready');
end
$$;
comment on function fleet.resume_agent(text) is 'Gives an agent new tasks again.';
