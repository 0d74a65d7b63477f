-- What shared claims need.

-- Names the request that a claim answered, so that the same request again is answered with the same claim, also when a
-- commit's outcome was unknown. Null unless leased to an agent. In no index: it is looked for among what a session holds.
alter table fleet.tasks add column claim_id uuid;

-- The process that last claimed for this session. While it is the same one, that process knows what the session holds
-- and need not count.
alter table fleet.sessions add column claimer uuid;

-- Rows that arrive by plain SQL wake the replicas, once a statement. Replicas tell each other themselves, by one sender
-- each: NOTIFY inside every inserting transaction would make them queue on one lock.
create function fleet.wake_replicas() returns trigger language plpgsql set search_path = fleet, pg_temp as $$
begin
  perform pg_notify('fleet_wake', '*');
  return null;
end
$$;

create trigger tasks_wake after insert on fleet.tasks
  for each statement when (current_setting('agent_fleet.tells', true) is distinct from 'itself')
  execute function fleet.wake_replicas();
