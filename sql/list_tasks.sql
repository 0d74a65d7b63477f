-- Purpose: a page of tasks, newest first, without their text. A filter that is null is no filter.
-- Locks:   none.
-- Index:   tasks_pkey (ids follow the database's clock); task_specs_pkey; sessions_pkey; receipts_pkey.
-- $1 text: status; $2 text: agent_id or host, as holder or pin; $3 text: execution_mode; $4 text: capability;
-- $5 text: source; $6 text: part of the title or key; $7 uuid: only ids below; $8 bigint: how many.
select t.task_id, coalesce(t.key, t.task_id::text) as key, t.source, t.priority, t.status,
       t.execution_mode, t.pinned_to, t.lease, t.attempt,
       t.max_retries, t.retry_count, t.review_count, t.timeout_secs, t.run_at, t.deadline_at,
       case when t.status = 'assigned' and t.holder is null and t.execution_mode = 'http_pull'
            then t.pinned_to else t.assigned_agent_id end as assigned_agent_id,
       case when t.status = 'assigned' and t.holder is null and t.execution_mode = 'ssh_cli'
            then t.pinned_to else t.assigned_host end as assigned_host,
       h.last_heartbeat_at + h.ttl as lease_expires_at,
       t.created_at, t.assigned_at, t.started_at, t.completed_at, t.last_activity_at, t.pr_url, t.pr_title, t.error,
       t.traceparent,
       s.title, s.labels, s.capabilities, s.repo, s.issue_url, s.notes,
       r.body ->> 'summary' as summary, r.body -> 'usage' as usage,
       fleet.waiting_reason(t.status, t.execution_mode, t.holder, s.capabilities, t.lane_id) as waiting_reason
  from fleet.tasks t
  join fleet.task_specs s on s.task_id = t.task_id
       and s.version = case when t.holder is null then t.spec_version else t.claimed_version end
  left join fleet.sessions h on h.session_id = t.holder and h.ended_at is null
  left join lateral (select body from fleet.receipts r
                      where r.task_id = t.task_id order by r.lease desc limit 1) r on true
 where ($1::text is null or t.status = $1)
   and ($2::text is null or t.assigned_agent_id = $2 or t.assigned_host = $2 or t.pinned_to = $2)
   and ($3::text is null or t.execution_mode = $3)
   and ($4::text is null or $4 = any (s.capabilities))
   and ($5::text is null or t.source = $5)
   and ($6::text is null or strpos(lower(s.title), lower($6)) > 0
        or strpos(lower(coalesce(t.key, t.task_id::text)), lower($6)) > 0)
   and ($7::uuid is null or t.task_id < $7)
 order by t.task_id desc
 limit $8::bigint
