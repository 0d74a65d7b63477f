-- Purpose: keeps the newest state of an issue. Older seconds lose, within a second the last delivered wins, unless it has been
--          seen; zero rows mean that nothing is new.
-- Locks:   the issue.
-- Index:   forge_issues_pkey.
-- $1 text: key; $2 timestamptz: updated_at; $3 bytea: hash of the body; $4 jsonb: state; $5 boolean: just reopened.
insert into fleet.forge_issues as f (key, updated_at, body_hash, state, reopened_version)
values ($1, $2, $3, $4, case when $5 then 1 else 0 end)
on conflict (key) do update
   set version = f.version + 1, updated_at = excluded.updated_at, body_hash = excluded.body_hash,
       recent_hashes = case when date_trunc('second', excluded.updated_at) = date_trunc('second', f.updated_at)
                            then f.recent_hashes || f.body_hash else '{}' end,
       state = excluded.state, received_at = now(),
       reopened_version = case when $5 then f.version + 1 else f.reopened_version end
 where date_trunc('second', excluded.updated_at) >= date_trunc('second', f.updated_at)
   and excluded.body_hash <> f.body_hash and excluded.body_hash <> all (f.recent_hashes)
returning version
