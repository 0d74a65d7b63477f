-- Purpose: what happened in each minute of the last hour, the running one included.
-- Index:   task_events_at.
create or replace view fleet.throughput as
with happened as materialized (
  select date_trunc('minute', e.at) as minute,
         count(*) filter (where e.type = 'created') as created,
         count(*) filter (where e.type = 'claimed') as claimed,
         count(*) filter (where e.to_status in ('completed', 'review_pending')) as completed,
         count(*) filter (where e.type in ('failed', 'timed_out')) as failed,
         count(*) filter (where e.type = 'lost') as lost,
         count(*) filter (where e.type = 'released') as released,
         count(*) filter (where e.type = 'cancelled') as cancelled
    from fleet.task_events e
   where e.at >= date_trunc('minute', now()) - interval '59 minutes'
   group by 1
)
select m.minute, coalesce(h.created, 0) as created, coalesce(h.claimed, 0) as claimed,
       coalesce(h.completed, 0) as completed, coalesce(h.failed, 0) as failed, coalesce(h.lost, 0) as lost,
       coalesce(h.released, 0) as released, coalesce(h.cancelled, 0) as cancelled
  from generate_series(date_trunc('minute', now()) - interval '59 minutes', date_trunc('minute', now()),
                       interval '1 minute') m(minute)
  left join happened h on h.minute = m.minute;

comment on view fleet.throughput is 'What happened in each minute of the last hour, by the event log.';
comment on column fleet.throughput.minute is 'The minute; the last one is not over.';
comment on column fleet.throughput.created is 'Tasks made.';
comment on column fleet.throughput.claimed is 'Attempts begun.';
comment on column fleet.throughput.completed is 'Tasks completed, or handed over to review.';
comment on column fleet.throughput.failed is 'Attempts that failed or timed out, with or without a retry to come.';
comment on column fleet.throughput.lost is 'Attempts whose holder was lost.';
comment on column fleet.throughput.released is 'Attempts given back and not counted.';
comment on column fleet.throughput.cancelled is 'Tasks called off.';
