-- Purpose: an agent takes nothing new from now on, or does again. Zero rows mean that there is no such agent.
-- Locks:   the agent.
-- Index:   agents_pkey.
-- $1 text: agent_id; $2 boolean: whether it drains.
update fleet.agents set drained_at = case when $2::boolean then coalesce(drained_at, now()) end
 where agent_id = $1
returning agent_id
