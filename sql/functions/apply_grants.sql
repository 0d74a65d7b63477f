-- Purpose: gives every object of the schema its owner and every role its rights, and no others; may be repeated at any time.
--          `migrate --roles` and, once the roles exist, every `migrate` call it. Run it as a member of fleet_owner.
-- Locks:   an advisory lock, so that two at once do not meet in the catalogues; for a moment each table, where an owner
--          changes.
create or replace function fleet.apply_grants() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  o     record;
  owner text;
begin
  if (select count(*) from pg_roles
       where rolname in ('fleet_owner', 'fleet_app', 'fleet_readonly', 'fleet_maintenance')) < 4 then
    perform fleet.refuse('ZF404', 'the roles are not there', 'Run `agent-fleet migrate --roles` with an account that may create roles.');
  end if;
  perform pg_advisory_xact_lock(hashtextextended('fleet.apply_grants', 0));

  -- Who owns what. A partition can be detached and dropped only by its owner.
  if (select nspowner::regrole::text from pg_namespace where nspname = 'fleet') <> 'fleet_owner' then
    execute format('grant create on database %I to fleet_owner', current_database());
    alter schema fleet owner to fleet_owner;
  end if;
  grant usage on schema fleet to fleet_app, fleet_readonly, fleet_maintenance;
  grant create on schema fleet to fleet_maintenance;
  for o in select c.relname, c.relkind, pg_get_userbyid(c.relowner) as owner,
                  c.relname ~ '^task_(events|logs)(_\d{4}w\d{2})?$' as partitioned
             from pg_class c
            where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
              and not exists (select 1 from pg_depend d where d.objid = c.oid and d.deptype = 'i' and c.relkind = 'S')
            order by c.relkind, c.relname loop
    owner := case when o.partitioned then 'fleet_maintenance' else 'fleet_owner' end;
    if o.owner <> owner then
      execute format('alter %s fleet.%I owner to %I',
                     case o.relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end, o.relname, owner);
    end if;
  end loop;
  for o in select p.oid::regprocedure as signature, p.proname, pg_get_userbyid(p.proowner) as owner
             from pg_proc p where p.pronamespace = 'fleet'::regnamespace loop
    owner := case when o.proname = 'make_partitions' then 'fleet_maintenance' else 'fleet_owner' end;
    if o.owner <> owner then
      execute format('alter function %s owner to %I', o.signature, owner);
    end if;
  end loop;
  -- Partitions then belong to fleet_maintenance, whoever asks for them.
  alter function fleet.make_partitions(interval) security definer;

  -- Nobody has anything that is not given here.
  revoke all on all tables in schema fleet from public, fleet_app, fleet_readonly;
  revoke all on all sequences in schema fleet from public, fleet_app, fleet_readonly;
  revoke all on all functions in schema fleet from public, fleet_app, fleet_readonly;

  -- The coordinator: what its statements use.
  for o in select * from (values
      ('agents',             'select, insert, update, delete'),
      ('cancel_notices',     'select, insert, delete'),
      ('definitions',        'select'),
      ('forge_issues',       'select, insert, update'),
      ('forge_outbox',       'select, delete'),
      ('host_agents',        'select, insert, update, delete'),
      ('hosts',              'select, insert, update'),
      ('idempotency_keys',   'select, insert, update, delete'),
      ('identity',           'select'),
      ('lanes',              'select, insert, update, delete'),
      ('receipts',           'select, insert, delete'),
      ('replica_hosts',      'select, insert, update, delete'),
      ('replicas',           'select, insert, update, delete'),
      ('runs',               'select, insert, update, delete'),
      ('schema_history',     'select'),
      ('sessions',           'select, insert, update, delete'),
      ('task_events',        'select, insert'),
      ('task_logs',          'select, insert'),
      ('task_specs',         'select, insert, delete'),
      ('tasks',              'select, insert, update, delete'),
      ('webhook_deliveries', 'select, insert, update, delete')) as g(name, rights) loop
    execute format('grant %s on fleet.%I to fleet_app', o.rights, o.name);
  end loop;
  for o in select c.relname from pg_class c where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'v' loop
    execute format('grant select on fleet.%I to fleet_app, fleet_readonly', o.relname);
  end loop;
  -- Owning them is for their partitions alone; rows are only added.
  revoke all on fleet.task_events, fleet.task_logs from fleet_maintenance;
  grant select on fleet.task_events, fleet.task_logs to fleet_maintenance, fleet_owner;
  grant insert on fleet.task_events to fleet_owner;
  grant usage on all sequences in schema fleet to fleet_app;
  grant execute on all functions in schema fleet to fleet_app;
  revoke execute on function fleet.apply_grants() from fleet_app;

  -- Those who only read: the views, and what the views' functions read in their name: no text of a task, no token.
  grant execute on function fleet.waiting_reason(text, text, uuid, text[], bigint), fleet.known_host_agents(interval)
    to fleet_readonly;
  grant select on fleet.lanes, fleet.sessions, fleet.hosts, fleet.host_agents, fleet.replica_hosts to fleet_readonly;
  grant select (agent_id, agent_type, hostname, capabilities, max_concurrency, session_id, drained_at, registered_at)
    on fleet.agents to fleet_readonly;
end
$$;
comment on function fleet.apply_grants() is 'Gives every object of the schema its owner and every role its rights, and no others. May be repeated.';
