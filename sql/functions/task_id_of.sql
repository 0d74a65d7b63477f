-- Purpose: the id of the task that a text names, by id or by key.
create or replace function fleet.task_id_of(task text) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  found_id uuid;
begin
  if task is null then
    perform fleet.refuse('ZF400', 'task is null', 'Name a task by its id or its key.');
  end if;
  if task ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    select t.task_id into found_id from fleet.tasks t where t.task_id = task::uuid;
  else
    select t.task_id into found_id from fleet.tasks t where t.key = task;
  end if;
  if found_id is null then
    perform fleet.refuse('ZF404', format('there is no task %L', left(task, 200)),
                         'select task_id, key from fleet.waiting_tasks shows what waits, fleet.running_tasks what runs.');
  end if;
  return found_id;
end
$$;
comment on function fleet.task_id_of(text) is 'The id of the task that a text names, by id or by key.';
