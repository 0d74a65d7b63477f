-- Purpose: forgets tasks that ended long ago, with all that hangs on them: a step of a walk along the primary key, which
--          follows the time of making. Never one that is live or held, nor an issue's while the issue is open or has news
--          that the task has not taken in: the next delivery would make it anew, and it would be done twice.
-- Locks:   those tasks, by id, FOR UPDATE SKIP LOCKED; then what hangs on them.
-- Index:   tasks_pkey; task_specs_pkey; receipts_pkey; runs_pkey; forge_issues_pkey.
-- $1 double precision: ended so many seconds ago; $2 uuid: only ids above; $3 boolean: also ids that are younger than that,
-- as those not made by the database may be; $4 integer: how many to look at. last_id is null at the end of the walk.
with looked as materialized (
  select t.task_id, t.status, t.holder, t.completed_at, t.last_activity_at
    from fleet.tasks t
   where t.task_id > $2::uuid
     and ($3::boolean or t.task_id < (encode(substring(int8send(floor(extract(epoch from
            now() - make_interval(secs => $1)) * 1000)::bigint) from 3), 'hex') || repeat('0', 20))::uuid)
   order by t.task_id
   limit $4::integer
),
old as materialized (
  select t.task_id
    from fleet.tasks t
   where t.task_id = any (array(
           select l.task_id from looked l
            where l.status in ('completed', 'failed', 'agent_lost', 'cancelled') and l.holder is null
              and greatest(l.completed_at, l.last_activity_at) < now() - make_interval(secs => $1)))
     and t.status in ('completed', 'failed', 'agent_lost', 'cancelled') and t.holder is null
     and greatest(t.completed_at, t.last_activity_at) < now() - make_interval(secs => $1)
     and not (t.source = 'forgejo' and coalesce(t.issue_open, true))
     and not exists (select 1 from fleet.forge_issues f
                      where f.key = t.key and f.version > coalesce(t.issue_version, 0))
   order by t.task_id
     for update of t skip locked
),
gone as (delete from fleet.tasks t using old o where t.task_id = o.task_id returning t.task_id),
spec as (delete from fleet.task_specs s using old o where s.task_id = o.task_id),
receipt as (delete from fleet.receipts r using old o where r.task_id = o.task_id),
run as (delete from fleet.runs r using old o where r.task_id = o.task_id),
outbox as (delete from fleet.forge_outbox b using old o where b.task_id = o.task_id and b.done_at is not null)
select (select l.task_id from looked l order by l.task_id desc limit 1) as last_id,
       (select count(*) from gone) as purged
