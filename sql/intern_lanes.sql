-- Purpose: gives each set of requirements its lane. Run in a transaction of its own and committed before any task refers
--          to it, so that a cached lane always exists.
-- Locks:   inserted rows only, in the order of their sets.
-- Index:   lanes_capabilities_key.
-- $1 jsonb: array of sorted arrays of capabilities.
insert into fleet.lanes (capabilities)
select distinct array(select jsonb_array_elements_text(s.capabilities)) as capabilities
  from jsonb_array_elements($1::jsonb) as s(capabilities)
 order by capabilities
on conflict (capabilities) do nothing
