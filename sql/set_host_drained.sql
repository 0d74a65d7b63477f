-- Purpose: a host is given nothing new from now on, or is again. Zero rows mean that there is no such host.
-- Locks:   the host.
-- Index:   hosts_pkey.
-- $1 text: host_id; $2 boolean: whether it drains.
update fleet.hosts set drained_at = case when $2::boolean then coalesce(drained_at, now()) end
 where host_id = $1
returning host_id
