-- The same rule as before, and the same answers. In PL/pgSQL a session keeps its plan; in SQL it was planned anew by every
-- statement that asked, which took ten times as long as the answer.
create or replace function fleet.waiting_reason(status text, execution_mode text, holder uuid, required text[], lane_id bigint)
returns text language plpgsql stable parallel safe as $$
begin
  return case
    when status = 'scheduled' then 'scheduled'
    when status = 'assigned' and holder is null then 'pinned'
    when status <> 'created' then null
    when exists (select 1 from fleet.lanes l
                  where l.lane_id = waiting_reason.lane_id and l.paused_at is not null) then 'paused'
    when waiting_reason.execution_mode <> 'ssh_cli'
         and exists (select 1 from fleet.agents a join fleet.sessions s on s.session_id = a.session_id
                      where s.ended_at is null and required <@ a.capabilities) then 'no_idle_agent'
    when waiting_reason.execution_mode = 'http_pull' then 'no_capable_agent'
    else (select case when bool_or(k.online) is null then 'no_capable_agent'
                      when not bool_or(k.online) then 'host_offline'
                      when not bool_or(k.online and (k.parked_until is null or k.parked_until <= now())) then 'quota'
                      else 'no_idle_agent' end
            from fleet.known_host_agents(interval '0') k
           where required <@ k.capabilities)
  end;
end $$;
