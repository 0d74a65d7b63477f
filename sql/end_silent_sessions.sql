-- Purpose: death is a recorded transition: sessions silent for longer than their ttl are ended; their leases follow in a
--          later transaction. Nobody judges before it can see: only a replica that has itself beaten without a gap for
--          one whole ttl of the session judged, and whose last beat is fresh.
-- Locks:   those sessions, by id, FOR UPDATE SKIP LOCKED.
-- Index:   sessions_live; sessions_pkey.
-- $1 uuid: this replica's session; $2 bigint: at most this many.
with me as materialized (
  select steady_since from fleet.sessions
   where session_id = $1 and ended_at is null and last_heartbeat_at > now() - ttl / 2
),
silent as materialized (
  select s.session_id
    from fleet.sessions s
    join me on me.steady_since <= now() - s.ttl
   where s.ended_at is null and s.last_heartbeat_at < now() - s.ttl
   order by s.session_id
   limit $2
     for update of s skip locked
)
update fleet.sessions s
   set ended_at = now(), end_reason = 'silent'
  from silent
 where s.session_id = silent.session_id and s.ended_at is null
returning s.session_id, s.kind, s.subject
