-- Purpose: what the forge delivered in the last day, and what came of it.
-- Index:   webhook_deliveries_received.
create or replace view fleet.webhook_activity as
select date_trunc('hour', d.received_at) as hour, d.event, d.action, d.result, d.reason, count(*) as deliveries,
       count(distinct d.task_id) as tasks, max(d.received_at) as last_at
  from fleet.webhook_deliveries d
 where d.received_at >= date_trunc('hour', now()) - interval '23 hours'
 group by 1, 2, 3, 4, 5;

comment on view fleet.webhook_activity is 'What the forge delivered in the last day, by hour, and what came of it. A delivery with a bad signature leaves no row; the log has it.';
comment on column fleet.webhook_activity.hour is 'The hour; the last one is not over.';
comment on column fleet.webhook_activity.event is 'issues, issue_label and so on.';
comment on column fleet.webhook_activity.action is 'opened, closed and so on.';
comment on column fleet.webhook_activity.result is 'created, updated, ignored or duplicate.';
comment on column fleet.webhook_activity.reason is 'Why it was ignored.';
comment on column fleet.webhook_activity.deliveries is 'How many.';
comment on column fleet.webhook_activity.tasks is 'How many tasks they were about.';
comment on column fleet.webhook_activity.last_at is 'The last of them.';
