-- A task is written three times within moments: it comes, is claimed, is done. On pages filled to the brim each of the latter
-- two goes wherever a page has room by then, so under load there was something new on nearly every page of the table, and
-- vacuum read all of it each time: the more history, the longer. With room left on its page a task stays there, what is over
-- is pruned on the spot, and vacuum reads the newest pages only. Costs three tenths more pages, of new ones.
--
-- Being cheaper it may come more often: with 2 % (V0013) it came at every other look (`autovacuum_naptime`) from 250,000 tasks
-- on, and the ready indexes grew.
alter table fleet.tasks set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.005);
