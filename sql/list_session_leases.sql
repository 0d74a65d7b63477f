-- Purpose: what a session of an agent holds, so that it can be ended.
-- Locks:   none; end_leases is fenced.
-- Index:   tasks_held.
-- $1 uuid: session.
select task_id, lease, holder from fleet.tasks where host_agent_id is null and holder = $1 order by task_id
