-- Purpose: weekly partitions of the event log and of the output that ended long ago, each with the one next step: detach it
--          (beside all readers and writers), finish a detaching that was broken off, or drop what is detached. Whoever is
--          broken off anywhere leaves a state from which this goes on.
-- Locks:   none.
-- Index:   none; the catalogues.
-- $1 double precision: ended so many seconds ago.
select c.relname::text as name,
       case when i.inhrelid is null then format('drop table fleet.%I', c.relname)
            when i.inhdetachpending then format('alter table fleet.%I detach partition fleet.%I finalize', p.relname, c.relname)
            else format('alter table fleet.%I detach partition fleet.%I concurrently', p.relname, c.relname) end as step
  from pg_class c
  left join pg_inherits i on i.inhrelid = c.oid
  left join pg_class p on p.oid = i.inhparent
 where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and c.relname ~ '^task_(events|logs)_\d{4}w\d{2}$'
   and (to_date(right(c.relname, 7), 'IYYY"w"IW') + 7)::timestamp at time zone 'UTC' < now() - make_interval(secs => $1)
 order by i.inhdetachpending desc nulls last, c.relname
