-- Before a stretch that is measured, the same for the floor and for the coordinator: fresh statistics, and no
-- checkpoint that is about to begin.
analyze fleet.tasks;
analyze fleet.lanes;
checkpoint;
select '{}';
