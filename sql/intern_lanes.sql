-- Purpose: gives each set of requirements its lane, and takes back one that was retired. Run in a transaction of its own
--          and committed before any task refers to it, so that a cached lane always exists.
-- Locks:   inserted rows and retired ones, in the order of their sets.
-- Index:   lanes_capabilities_key.
-- $1 jsonb: array of sorted arrays of capabilities.
with wanted as materialized (
  select distinct array(select jsonb_array_elements_text(s.capabilities)) as capabilities
    from jsonb_array_elements($1::jsonb) as s(capabilities)
),
retired as materialized (
  select l.lane_id
    from fleet.lanes l
    join wanted w on w.capabilities = l.capabilities
   where l.retired_xid is not null
   order by l.capabilities
     for update of l
),
back as (
  update fleet.lanes l set retired_xid = null, seen_at = now() from retired r where l.lane_id = r.lane_id
)
insert into fleet.lanes (capabilities)
select capabilities from wanted order by capabilities
on conflict (capabilities) do nothing
