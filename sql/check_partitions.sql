-- Purpose: whether the partitions for the coming week are there.
-- Locks:   none.
-- Index:   none.
select coalesce(bool_and(to_regclass(format('fleet.%I', p || to_char(w at time zone 'UTC', '_IYYY"w"IW'))) is not null),
                false) as ready
  from unnest(array['task_events', 'task_logs']) p,
       unnest(array[now(), now() + interval '7 days']) w
