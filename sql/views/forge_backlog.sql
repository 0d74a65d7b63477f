-- Purpose: what the forge has said that is not taken in yet, and what the forge is yet to be told.
-- Index:   forge_outbox_open; tasks_held; forge_issues_pkey.
create or replace view fleet.forge_backlog as
select 'to_forge' as direction, o.kind, count(*) as items, count(*) filter (where o.not_before <= now()) as due,
       count(*) filter (where o.tries > 0) as tried, max(o.tries) as most_tries, now() - min(o.created_at) as oldest_age
  from fleet.forge_outbox o
 where o.done_at is null
 group by o.kind
union all
select 'from_forge', 'issue', count(*), 0, 0, 0, now() - min(f.received_at)
  from fleet.tasks t
  join fleet.forge_issues f on f.key = t.key
 where t.holder is not null and t.source = 'forgejo' and f.version > coalesce(t.issue_version, 0)
having count(*) > 0;

comment on view fleet.forge_backlog is 'What the forge is yet to be told, and what it has said of tasks that are held, which is taken in when their lease ends.';
comment on column fleet.forge_backlog.direction is 'to_forge or from_forge.';
comment on column fleet.forge_backlog.kind is 'What is to be told; issue for a newer state of an issue.';
comment on column fleet.forge_backlog.items is 'How many.';
comment on column fleet.forge_backlog.due is 'How many of them could be told now.';
comment on column fleet.forge_backlog.tried is 'How many have been tried in vain.';
comment on column fleet.forge_backlog.most_tries is 'How often, at most.';
comment on column fleet.forge_backlog.oldest_age is 'Since the oldest came.';
