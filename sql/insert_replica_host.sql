-- Purpose: this boot lists this host.
-- Locks:   the row.
-- Index:   replica_hosts_pkey.
-- $1 uuid: session; $2 text: host_id; $3 text: reason while it has not been probed.
insert into fleet.replica_hosts (session_id, host_id, reason) values ($1, $2, $3)
on conflict (session_id, host_id) do nothing
