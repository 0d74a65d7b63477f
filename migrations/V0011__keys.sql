-- Tasks that nobody named need no key: theirs was the id again, written anew with each of a task's versions and entered into
-- the index three times in its life, a tenth of all that a task cost in the write-ahead log. What was made before keeps it.

-- A contraction: 0.1 names the index in its inserts and reads the key as never null; 0.2 does neither.
do $$
declare
  old text;
begin
  select string_agg(r.replica_id, ', ' order by r.replica_id) into old
    from fleet.replicas r
    join fleet.sessions s on s.session_id = r.session_id
   where r.version like '0.1.%' and s.ended_at is null and s.last_heartbeat_at > now() - s.ttl;
  if old is not null then
    raise exception 'replicas of version 0.1 are running and could not create tasks after this: %', old
      using hint = 'Upgrade them to 0.2.0 first, or stop them; then migrate again.';
  end if;
end
$$;

-- Locks out writers for as long as one scan of the table takes, as V0007 did.
create unique index tasks_named on fleet.tasks (key) where key is not null;
alter table fleet.tasks drop constraint tasks_key;
alter index fleet.tasks_named rename to tasks_key;
alter table fleet.tasks alter column key drop not null;
