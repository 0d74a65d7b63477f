-- Purpose: an agent gets no new tasks; what it holds it may finish.
-- Locks:   the agent, until the caller's transaction ends.
create or replace function fleet.drain_agent(agent_id text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  update fleet.agents a set drained_at = coalesce(a.drained_at, now()) where a.agent_id = drain_agent.agent_id;
  if not found then
    perform fleet.refuse('ZF404', format('there is no agent %L', left(agent_id, 200)), 'fleet.agent_load lists them.');
  end if;
end
$$;
comment on function fleet.drain_agent(text) is 'Gives an agent no new tasks; what it holds it may finish. fleet.resume_agent ends it.';
