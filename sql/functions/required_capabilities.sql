-- Purpose: the requirements among labels, sorted: those that begin with agent: or agent/. As the coordinator reads them.
create or replace function fleet.required_capabilities(labels text[]) returns text[]
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(r.name order by r.name collate "C"), '{}')
    from (select distinct 'agent:' || substring(regexp_replace(l, '^\s+|\s+$', '', 'g') from 7) as name
            from unnest(labels) l
           where regexp_replace(l, '^\s+|\s+$', '', 'g') ~ '^agent[:/].') r
$$;
comment on function fleet.required_capabilities(text[]) is 'The requirements among labels: those that begin with agent: or agent/, sorted.';
