-- Purpose: this boot has said which hosts it knows.
-- Locks:   the replica's row.
-- Index:   replicas_pkey.
-- $1 text: replica_id; $2 uuid: session.
update fleet.replicas set hosts_listed_at = now() where replica_id = $1 and session_id = $2
