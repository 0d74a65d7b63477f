-- Purpose: what a heartbeat has to tell: leases of this session that were cancelled. Told again for as long as a session
--          may be silent, so that a lost reply loses nothing.
-- Locks:   none.
-- Index:   cancel_notices_pkey; sessions_pkey.
-- $1 uuid: session.
select n.task_id
  from fleet.cancel_notices n
  join fleet.sessions s on s.session_id = n.session_id
 where n.session_id = $1 and n.at > now() - s.ttl
 order by n.at
