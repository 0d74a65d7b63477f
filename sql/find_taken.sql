-- Purpose: which deliveries are not plainly new: taken before, or about an issue that is known or has a task. Had before the
--          transaction that takes the others together.
-- Locks:   none.
-- Index:   webhook_deliveries_pkey; forge_issues_pkey; tasks_key.
-- $1 text[]: delivery ids; $2 text[]: the key of each one's issue, or null.
select i.ord
  from unnest($1::text[], $2::text[]) with ordinality i(delivery_id, key, ord)
 where (select true from fleet.webhook_deliveries d where d.delivery_id = i.delivery_id)
    or (select true from fleet.forge_issues f where f.key = i.key)
    or (select true from fleet.tasks t where t.key = i.key)
