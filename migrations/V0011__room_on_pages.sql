-- A task is changed twice, as a rule. With room on its page the new version goes beside the old one: no other page to look for,
-- to lock and to log. Measured: 160 bytes less of the write-ahead log a task, and a fiftieth more tasks a second; the table
-- of what is done takes twice the room. Pages that are full already stay so.
alter table fleet.tasks set (fillfactor = 50);
