-- Purpose: a host as this replica's configuration has it. A localhost host belongs to one machine: it moves to another
--          only when no live replica of the old one lists it; zero rows mean that it has not moved.
-- Locks:   the host.
-- Index:   hosts_pkey; replica_hosts_pkey.
-- $1 text: host_id; $2 text: hostname; $3 text: work_dir; $4 text: machine, null unless localhost.
insert into fleet.hosts as h (host_id, hostname, work_dir, machine)
values ($1, $2, $3, $4)
on conflict (host_id) do update
   set hostname = excluded.hostname, work_dir = excluded.work_dir, machine = excluded.machine
 where h.machine is not distinct from excluded.machine
    or not exists (select 1
                     from fleet.replica_hosts rh
                     join fleet.sessions s on s.session_id = rh.session_id and s.ended_at is null
                     join fleet.replicas r on r.session_id = s.session_id
                    where rh.host_id = h.host_id and r.machine is distinct from excluded.machine)
returning host_id
