-- Purpose: the reaper's look: whether some session is silent, whether some lease has lost its session, and in how many
--          seconds the next session will be silent unless it is heard of. One statement, so that idling costs one. Who may
--          judge is tested by end_silent_sessions.
-- Locks:   none.
-- Index:   sessions_live; tasks_held; sessions_pkey.
select coalesce(bool_or(s.last_heartbeat_at < now() - s.ttl), false) as silent,
       exists (select 1
                 from fleet.tasks t
                 join fleet.sessions e on e.session_id = t.holder
                where t.holder is not null and t.host_agent_id is null and e.ended_at is not null) as lost,
       extract(epoch from min(s.last_heartbeat_at + s.ttl) filter (where s.last_heartbeat_at >= now() - s.ttl)
                          - now())::double precision as next_secs
  from fleet.sessions s
 where s.ended_at is null
