-- A transaction that sees the tasks as they are now, and goes on seeing them.
begin isolation level repeatable read;
select 'held' from (select count(*) from fleet.lanes) as seen;
