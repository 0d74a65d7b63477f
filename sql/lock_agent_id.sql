-- Purpose: registrations and removals of one agent id take turns, also of one that is not there yet. They touch its
--          session, the agent and a new session; without this lock before all others, two of them wait for each other.
-- Locks:   an advisory lock on the id, until the transaction ends.
-- Index:   none.
-- $1 text: agent_id.
select pg_advisory_xact_lock(hashtextextended('fleet.agent ' || $1, 0))
