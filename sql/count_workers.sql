-- Purpose: how many agents and replicas live, how many agents there are, and how old the oldest transaction is that holds
--          back vacuum; for metrics.
-- Locks:   none.
-- Index:   sessions_live.
select (select count(*) from fleet.sessions where kind = 'agent' and ended_at is null) as agents,
       (select count(*) from fleet.sessions where kind = 'replica' and ended_at is null) as replicas,
       coalesce((select extract(epoch from now() - min(a.xact_start))::float8
                   from pg_stat_activity a
                  where a.datname = current_database() and a.backend_xmin is not null), 0) as oldest_transaction_secs,
       pg_notification_queue_usage() as notify_queue
