-- Purpose: the claim by dequeue, beside its last statement: notes on sessions who claims for them now, and their sign of life.
--          Only for those for which another process claimed before, or whose last sign of life could not be written for
--          long because they are locked for claims all the time; and for those for which this process may have a claim in
--          one statement on its way, which goes by what was held before: under another name than its own, it takes nothing.
-- Locks:   sessions that this transaction has locked before.
-- Index:   sessions_pkey.
-- $1 uuid[]: who claims; $2 uuid[]: for which session; $3 double precision[]: how many seconds ago that asked. That is its
-- sign of life; the claim is none: whoever asked may have died since.
update fleet.sessions s
   set claimer = w.claimer, last_heartbeat_at = greatest(s.last_heartbeat_at, now() - make_interval(secs => w.age))
  from unnest($1::uuid[], $2::uuid[], $3::double precision[]) as w(claimer, session_id, age)
 where s.session_id = w.session_id
