-- After many rows were made at once: what autovacuum would have done by and by.
vacuum (analyze) fleet.tasks;
vacuum (analyze) fleet.task_specs;
vacuum (analyze) fleet.lanes;
-- Its index by time knows a range of pages only once the range has been summarized.
vacuum (analyze) fleet.task_events;
checkpoint;
select '{}';
