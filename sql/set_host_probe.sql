-- Purpose: what this replica's probe of a host found.
-- Locks:   the row.
-- Index:   replica_hosts_pkey.
-- $1 uuid: session; $2 text: host_id; $3 boolean: online; $4 text: reason; $5 text[]: agent types without their CLI.
update fleet.replica_hosts
   set online = $3, reason = $4, missing = $5, checked_at = now()
 where session_id = $1 and host_id = $2
