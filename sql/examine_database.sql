-- Purpose: what an operator should know of the server and of this account, for `agent-fleet doctor`. Reads catalogues
--          alone, so that it also works where there is no schema yet.
-- Locks:   none.
-- Index:   none.
with fleet as (
  select c.oid, c.relname, c.relkind, c.reloptions
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
   where n.nspname = 'fleet'
)
select current_setting('server_version') as version,
       current_setting('server_version_num')::integer as version_num,
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer as connections,
       (select coalesce(sum(numbackends), 0)::bigint from pg_stat_database) as connected,
       current_setting('transaction_read_only') = 'on' as read_only,
       pg_is_in_recovery() as standby,
       current_setting('autovacuum') = 'on' and current_setting('track_counts') = 'on' as autovacuum,
       (select coalesce(array_agg(f.relname::text order by f.relname), '{}')
          from fleet f
         where exists (select 1 from unnest(f.reloptions) o where o ~* '^autovacuum_enabled=(false|off|no|0)$')) as unvacuumed,
       pg_notification_queue_usage() as notify_queue,
       extract(epoch from clock_timestamp())::float8 as clock_secs,
       current_user::text as account,
       (select r.rolsuper from pg_roles r where r.rolname = current_user) as superuser,
       (select coalesce(array_agg(w.name order by w.name), '{}')
          from unnest(array['fleet_app', 'fleet_maintenance', 'fleet_owner', 'fleet_readonly']) w(name)
         where not exists (select 1 from pg_roles r where r.rolname = w.name)) as lacking_roles,
       (select coalesce(array_agg(g.name || ': ' || r.privilege order by 1), '{}')
          from (values ('agents', 'select,insert,update,delete'), ('runs', 'select,insert,update,delete'),
                       ('sessions', 'select,insert,update,delete'), ('task_events', 'select,insert'),
                       ('task_specs', 'select,insert,delete'), ('tasks', 'select,insert,update,delete'),
                       ('receipts', 'select,insert,delete'), ('schema_history', 'select')) g(name, privileges)
          join fleet f on f.relname = g.name
         cross join unnest(string_to_array(g.privileges, ',')) r(privilege)
         where not has_table_privilege(f.oid, r.privilege)) as lacking_rights,
       coalesce((select has_schema_privilege(n.oid, 'usage') from pg_namespace n where n.nspname = 'fleet'), true) as uses_schema
