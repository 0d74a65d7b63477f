-- Purpose: a replica that boots.
-- Locks:   the replica's row.
-- Index:   replicas_pkey.
-- $1 text: replica_id; $2 uuid: session; $3 text: hostname; $4 text: version; $5 text: machine.
insert into fleet.replicas (replica_id, session_id, hostname, version, machine)
values ($1, $2, $3, $4, $5)
on conflict (replica_id) do update
   set session_id = excluded.session_id, hostname = excluded.hostname, version = excluded.version,
       machine = excluded.machine, hosts_listed_at = null
