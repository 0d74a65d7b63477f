-- Purpose: why ready tasks of a lane wait, by mode: fleet.waiting_reason, the API's own rule, asked once for each lane and
--          mode and not for each task.
-- Index:   none; lanes, agents and hosts are few.
create or replace view fleet.lane_reasons as
select l.lane_id, l.capabilities, m.execution_mode,
       fleet.waiting_reason('created', m.execution_mode, null, l.capabilities, l.lane_id) as waiting_reason
  from fleet.lanes l
 cross join (values ('undecided'), ('http_pull'), ('ssh_cli')) m(execution_mode);

comment on view fleet.lane_reasons is 'Why ready tasks of each lane wait, by mode, whether or not there are any now.';
comment on column fleet.lane_reasons.lane_id is 'The lane.';
comment on column fleet.lane_reasons.capabilities is 'What tasks of the lane require.';
comment on column fleet.lane_reasons.execution_mode is 'undecided, ssh_cli or http_pull.';
comment on column fleet.lane_reasons.waiting_reason is 'The word that the API has for it.';
