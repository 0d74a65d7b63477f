-- Purpose: keeps the first state of issues that nobody has heard of. A row less than was given means that somebody has.
-- Locks:   the inserted rows, in the order of their keys.
-- Index:   forge_issues_pkey.
-- One value each an issue: $1 text[]: key; $2 timestamptz[]: updated_at; $3 bytea[]: hash of the body; $4 jsonb[]: state;
-- $5 boolean[]: just reopened.
insert into fleet.forge_issues (key, updated_at, body_hash, state, reopened_version)
select i.key, i.updated_at, i.body_hash, i.state, case when i.reopened then 1 else 0 end
  from unnest($1::text[], $2::timestamptz[], $3::bytea[], $4::jsonb[], $5::boolean[])
       as i(key, updated_at, body_hash, state, reopened)
 order by i.key
on conflict (key) do nothing
