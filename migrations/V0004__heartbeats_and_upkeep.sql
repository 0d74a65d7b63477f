-- What heartbeats remember, what the janitor needs to know, and how often hot tables are vacuumed.

-- What the agent held when its last heartbeat came, and did not list: {"task_id": lease}. Null after a heartbeat
-- without a list. What the next list does not name either goes back to the queue.
alter table fleet.sessions add column unlisted jsonb;
