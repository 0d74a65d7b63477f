-- Purpose: the forge says that the work is done. A lease stays until its receipt, release or loss.
-- Locks:   the task; then appends.
-- Index:   tasks_pkey.
-- $1 uuid: task; $2 text: actor; $3 text: reason.
with cur as materialized (
  select task_id, status, lease, holder, attempt from fleet.tasks where task_id = $1 for update
),
done as (
  update fleet.tasks t
     set status = 'completed', completed_at = now(), run_at = null, error = null, last_activity_at = now(),
         pinned_to = case when cur.holder is null then null else t.pinned_to end,
         pinned_until = case when cur.holder is null then null else t.pinned_until end
    from cur
   where t.task_id = cur.task_id and cur.status <> 'completed'
  returning t.task_id
),
event as (
  insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt, detail)
  select cur.task_id, 'completed', cur.status, 'completed', $2::text, cur.lease, cur.attempt,
         jsonb_strip_nulls(jsonb_build_object('reason', $3::text))
    from cur join done using (task_id)
)
select cur.status, cur.lease, cur.holder, d.task_id is not null as applied
  from cur left join done d on true
