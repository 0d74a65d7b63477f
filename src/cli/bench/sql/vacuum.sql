-- After many rows were made at once: what autovacuum would have done by and by.
vacuum (analyze) fleet.tasks;
vacuum (analyze) fleet.task_specs;
vacuum (analyze) fleet.lanes;
checkpoint;
select '{}';
