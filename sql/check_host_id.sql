-- Purpose: whether an id is a configured host's, so that no agent takes it.
-- Locks:   none.
-- Index:   replica_hosts_pkey; sessions_live.
-- $1 text: id.
select exists (select 1 from fleet.replica_hosts rh
                 join fleet.sessions s on s.session_id = rh.session_id and s.ended_at is null
                where rh.host_id = $1) as known
