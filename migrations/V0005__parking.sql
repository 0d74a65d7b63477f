-- How often a host agent was parked since its last success: each time doubles how long it rests.
alter table fleet.host_agents add column park_count integer not null default 0;
