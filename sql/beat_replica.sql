-- Purpose: the heartbeat of a replica. A gap in it (longer than half its ttl) begins a new steady time, before which it
--          judges nobody. Zero rows mean that the session was ended: begin another. Tells whether it has been steady for its
--          ttl, and where it stands among the replicas that live.
-- Locks:   that session.
-- Index:   sessions_pkey; sessions_live.
-- $1 uuid: session.
update fleet.sessions
   set steady_since = case when last_heartbeat_at < now() - ttl / 2 then now() else steady_since end,
       last_heartbeat_at = now()
 where session_id = $1 and ended_at is null
returning now() >= steady_since + ttl as steady,
          (select count(*) from fleet.sessions r where r.kind = 'replica' and r.ended_at is null) as replicas,
          (select count(*) from fleet.sessions r
            where r.kind = 'replica' and r.ended_at is null and r.session_id < $1) as place
