-- Purpose: runs an ended task again, as POST …/retry does; the statement is sql/retry_task.sql itself. What its issue said
--          during its last lease is not applied here, as it is there: what that means is the coordinator's to decide.
-- Locks:   the task, until the caller's transaction ends; then appends.
create or replace function fleet.retry(task text, execution_mode text default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  did record;
begin
  if execution_mode not in ('undecided', 'ssh_cli', 'http_pull') then
    perform fleet.refuse('ZF400', format('execution_mode %L is not known', left(execution_mode, 40)),
                         'It is undecided, ssh_cli or http_pull; leave it out unless you must.');
  end if;
  select * into did from fleet.retry_task(fleet.task_id_of(task), 'sql:' || session_user, execution_mode, 'retried');
  if did.applied is not true then
    perform fleet.refuse('ZF409', format('a task that is %s cannot be retried', did.status),
                         'Only a failed, lost or cancelled one can.');
  end if;
  perform pg_notify('fleet_wake', 'ready');
end
$$;
comment on function fleet.retry(text, text) is 'Runs a failed, lost or cancelled task again, with all its retries; in another mode if one is given. An edit of its issue that was kept during the last lease is not taken over, as POST …/retry does.';
