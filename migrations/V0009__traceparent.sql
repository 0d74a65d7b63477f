-- Which trace a task belongs to, as W3C Trace Context writes it: the span that made it. Null unless its creation was traced.
alter table fleet.tasks add column traceparent text;
-- Not validated, so that nobody waits for a scan of the table: there are only nulls yet.
alter table fleet.tasks add constraint tasks_traceparent_check
  check (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$') not valid;
