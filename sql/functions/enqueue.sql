-- Purpose: makes a task, in the caller's transaction; the coordinator hears of it at the commit. The checks are those of
--          POST /api/v1/tasks, and the rows are written by sql/insert_tasks.sql itself. A set of requirements without a lane
--          gets one after the commit: a lane made here would block whoever makes the same one.
-- Locks:   the new rows.
create or replace function fleet.enqueue(
  title text, body text default '', labels text[] default '{}', priority text default null,
  execution_mode text default 'undecided', key text default null, run_at timestamptz default null,
  timeout_secs integer default 3600, max_retries integer default 2, repo jsonb default null, issue_url text default null)
returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  id        uuid := fleet.uuid_v7();
  required  text[];
  rank      smallint;
  hash      text;
  existing  record;
  bad       text;
begin
  body := coalesce(body, '');
  labels := coalesce(labels, '{}');
  execution_mode := coalesce(execution_mode, 'undecided');
  if title is null or title !~ '\S' then
    perform fleet.refuse('ZF400', 'title must not be empty', 'The title is what the agent is asked to do.');
  elsif octet_length(title) > 1000 then
    perform fleet.refuse('ZF400', format('title is %s bytes long; at most 1000 are allowed', octet_length(title)),
                         'Put the rest into body.');
  elsif octet_length(body) > 5242880 then
    perform fleet.refuse('ZF400', format('body is %s bytes long; at most 5242880 are allowed', octet_length(body)),
                         'Put the rest into a file and link to it.');
  elsif cardinality(labels) > 100 or array_ndims(labels) > 1 or array_position(labels, null) is not null then
    perform fleet.refuse('ZF400', 'labels must be at most 100 texts in one dimension, none of them null',
                         'For example: array[''agent:code'', ''bug''].');
  end if;
  select l into bad from unnest(labels) l where octet_length(l) > 255 limit 1;
  if bad is not null then
    perform fleet.refuse('ZF400', format('the label %s… is longer than 255 bytes', left(bad, 40)), 'Shorten it.');
  end if;
  required := fleet.required_capabilities(labels);
  if cardinality(required) > 16 then
    perform fleet.refuse('ZF400', format('%s capabilities are required; at most 16 are allowed', cardinality(required)),
                         'Only labels that begin with agent: or agent/ are requirements.');
  end if;
  select c into bad from unnest(required) c where octet_length(c) > 128 limit 1;
  if bad is not null then
    perform fleet.refuse('ZF400', format('the capability %s… is longer than 128 bytes', left(bad, 40)), 'Shorten it.');
  end if;
  if priority is null then
    select max(array_position(array['low', 'normal', 'high', 'urgent'],
                              lower(substring(regexp_replace(l, '^\s+|\s+$', '', 'g') from '^priority[:/](.*)$')))) - 1
      into rank from unnest(labels) l;
    rank := coalesce(rank, 1);
  else
    rank := array_position(array['low', 'normal', 'high', 'urgent'], priority) - 1;
    if rank is null then
      perform fleet.refuse('ZF400', format('priority %L is not known', left(priority, 40)),
                           'It is low, normal, high or urgent.');
    end if;
  end if;
  if execution_mode not in ('undecided', 'ssh_cli', 'http_pull') then
    perform fleet.refuse('ZF400', format('execution_mode %L is not known', left(execution_mode, 40)),
                         'It is undecided, ssh_cli or http_pull; leave it out unless you must.');
  end if;
  if key is not null and (key !~ '\S' or octet_length(key) > 200 or key ~ '[[:cntrl:]]'
                          or key ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$') then
    perform fleet.refuse('ZF400', 'key must be one line of at most 200 bytes, not empty and no UUID',
                         'It names the task for ever, such as org/repo#42.');
  end if;
  if timeout_secs is null or timeout_secs not between 1 and 2592000 then
    perform fleet.refuse('ZF400', 'timeout_secs must be from 1 to 2592000', 'That is the limit of one attempt in seconds.');
  end if;
  if max_retries is null or max_retries not between 0 and 100 then
    perform fleet.refuse('ZF400', 'max_retries must be from 0 to 100', 'A retry follows a failed, late or lost attempt.');
  end if;
  if run_at is not null and (run_at < '0001-01-01 00:00:00Z' or run_at >= '9999-12-30 00:00:00Z') then
    perform fleet.refuse('ZF400', 'run_at must be a moment from the year 1 to 9999-12-29', 'Leave it out to run now.');
  end if;
  if repo is not null then
    if jsonb_typeof(repo) = 'string' then
      repo := jsonb_build_object('full_name', repo);
    end if;
    if jsonb_typeof(repo) <> 'object' or coalesce(jsonb_typeof(repo -> 'full_name'), '') <> 'string' then
      perform fleet.refuse('ZF400', 'repo must be an object with full_name',
                           'For example: {"full_name": "org/repo", "clone_url": "https://…", "default_branch": "main"}.');
    end if;
    select f.key into bad from jsonb_each(repo) f
     where f.key in ('full_name', 'clone_url', 'ssh_url', 'default_branch')
       and (jsonb_typeof(f.value) not in ('string', 'null') or octet_length(f.value #>> '{}') > 2000
            or f.value #>> '{}' ~ '[[:cntrl:]]') limit 1;
    if bad is not null then
      perform fleet.refuse('ZF400', format('repo: %s must be one line of at most 2000 bytes', bad), 'Mend it or leave it out.');
    end if;
    repo := jsonb_build_object('full_name', repo -> 'full_name', 'clone_url', repo -> 'clone_url',
                               'ssh_url', repo -> 'ssh_url', 'default_branch', repo -> 'default_branch');
  end if;
  if issue_url is not null and (octet_length(issue_url) > 2000 or issue_url ~ '[[:cntrl:]]') then
    perform fleet.refuse('ZF400', 'issue_url must be one line of at most 2000 bytes', 'Mend it or leave it out.');
  end if;

  hash := encode(sha256(convert_to(jsonb_build_array(title, body, labels, rank, execution_mode, key, run_at, timeout_secs,
                                                     max_retries, repo, issue_url)::text, 'UTF8')), 'hex');
  perform fleet.insert_tasks(
    array[id], array[key], array['sql'], array[rank], array[execution_mode], array[max_retries],
    array[timeout_secs], array[run_at], array[title], array[body], array[labels::text], array[required::text], array[repo],
    array[issue_url], array[decode(hash, 'hex')], array[null::bigint], array[null::boolean], array['sql:' || session_user],
    array[null::text], false);
  if key is not null then
    select t.task_id, encode(s.request_hash, 'hex') = hash as same into existing
      from fleet.tasks t left join fleet.task_specs s on s.task_id = t.task_id and s.version = 1
     where t.key = enqueue.key;
    if existing.task_id <> id then
      if existing.same is not true then
        perform fleet.refuse('ZF409', format('the key %L was used before for another task', key),
                             'A key names one task for ever; choose another, or leave it out.');
      end if;
      return existing.task_id;
    end if;
  end if;
  perform pg_notify('fleet_wake', 'ready');
  return id;
end
$$;
comment on function fleet.enqueue(text, text, text[], text, text, text, timestamptz, integer, integer, jsonb, text) is
  'Makes a task; it can be taken once the transaction has committed. The same key with the same arguments again answers with the same task.';
