-- Purpose: the reaper's look: whether some session is silent, whether some lease has lost its session, and in how many
--          seconds the next session will be silent unless it is heard of. One statement, so that idling costs one. Who may
--          judge is tested by end_silent_sessions.
-- Locks:   none.
-- Index:   sessions_live; sessions_ended; tasks_held; sessions_pkey.
-- $1 boolean: look at all that is held, by whom it may be; else only at what sessions held that ended just now, which does
-- not read all that has been held until vacuum has been there.
select coalesce(bool_or(s.last_heartbeat_at < now() - s.ttl), false) as silent,
       case when $1::boolean then
         exists (select 1
                   from fleet.tasks t
                   join fleet.sessions e on e.session_id = t.holder
                  where t.holder is not null and t.host_agent_id is null and e.ended_at is not null)
       else
         exists (select 1
                   from fleet.sessions e
                  where e.ended_at > now() - interval '2 minutes'
                    and (select true from fleet.tasks t where t.host_agent_id is null and t.holder = e.session_id limit 1))
       end as lost,
       extract(epoch from min(s.last_heartbeat_at + s.ttl) filter (where s.last_heartbeat_at >= now() - s.ttl)
                          - now())::double precision as next_secs
  from fleet.sessions s
 where s.ended_at is null
