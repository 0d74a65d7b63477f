-- Purpose: the four roles of the cluster, without a login, and who holds whom. May be repeated, and raced: a role that
--          somebody else has just made is as good.
-- Locks:   the catalogue of roles.
-- Index:   none.
do $$
declare
  name text;
begin
  foreach name in array array['fleet_owner', 'fleet_app', 'fleet_readonly', 'fleet_maintenance'] loop
    begin
      execute format('create role %I nologin', name);
    exception when duplicate_object or unique_violation then
      null;
    end;
  end loop;
  -- Roles are of the whole cluster: elsewhere in it the same may be going on.
  perform pg_advisory_xact_lock(hashtextextended('fleet.roles', 0));
  -- fleet_app holds fleet_maintenance to detach and drop old partitions; fleet_owner to alter the partitioned tables; and
  -- whoever migrates is the owner.
  for name in
    select format('grant %I to %I', g.held, g.holder)
      from (values ('fleet_maintenance', 'fleet_app'), ('fleet_maintenance', 'fleet_owner'),
                   ('fleet_owner', current_user::text)) g(held, holder)
     where not exists (select 1 from pg_auth_members m
                        where m.roleid = g.held::regrole and m.member = quote_ident(g.holder)::regrole)
       and not (g.holder = current_user and (select rolsuper from pg_roles where rolname = current_user)) loop
    execute name;
  end loop;
end
$$
