-- Purpose: whether an issue's newest state, or one of the same second before it, is from this very body.
-- Locks:   none.
-- Index:   forge_issues_pkey.
-- $1 text: key; $2 bytea: hash of the body.
select body_hash = $2 or $2 = any (recent_hashes) as same from fleet.forge_issues where key = $1
