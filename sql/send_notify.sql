-- Purpose: wakes the other replicas.
-- Locks:   the cluster-wide lock of NOTIFY, for the moment of its commit; hence its own small transaction.
-- Index:   none.
-- $1 text: payload.
select pg_notify('fleet_wake', $1)
