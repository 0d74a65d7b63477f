-- Purpose: wakes the other replicas. A hint: its commit does not wait for the disk, nor for a standby.
-- Locks:   the cluster-wide lock of NOTIFY, for the moment of its commit; hence its own small transaction.
-- Index:   none.
-- $1 text: payload.
select set_config('synchronous_commit', 'off', true), pg_notify('fleet_wake', $1)
