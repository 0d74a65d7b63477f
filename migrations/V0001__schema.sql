-- The data of agent-fleet: what there is, and why it is cut this way. docs/architecture.md tells the story.
-- Rules: statuses are text with CHECK; time is the database's; order is by seq; no foreign key refers to tasks or
-- lanes (its KEY SHARE lock would make a row unclaimable for a moment).

create schema if not exists fleet;

-- A UUIDv7 by the database's clock: 48 bits of Unix milliseconds, then random (RFC 9562). PostgreSQL has its own from 18.
create function fleet.uuid_v7() returns uuid language sql volatile parallel safe as $$
  select encode(set_bit(set_bit(
           overlay(uuid_send(gen_random_uuid())
                   placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                   from 1 for 6),
           52, 1), 53, 1), 'hex')::uuid
$$;

-- Names this fleet on its hosts, so that two fleets can share one.
create table fleet.identity (
  only_row boolean primary key default true check (only_row),
  fleet_id uuid    not null default gen_random_uuid()
);
insert into fleet.identity default values;

-- One row for each distinct set of required capabilities. The set is sorted.
create table fleet.lanes (
  lane_id      bigint generated always as identity primary key,
  capabilities text[] not null unique check (cardinality(capabilities) <= 16),
  paused_at    timestamptz,
  created_at   timestamptz not null default now()
);

-- The row that changes: narrow. What is wide is in task_specs, receipts, task_events.
create table fleet.tasks (
  task_id           uuid        not null default fleet.uuid_v7(),
  key               text        not null,
  source            text        not null default 'sql'
                    check (source in ('api', 'cli', 'sql', 'forgejo')),
  seq               bigint      generated always as identity,
  lane_id           bigint,                 -- null until the scheduler has interned the set
  priority          smallint    not null default 1 check (priority between 0 and 3), -- low, normal, high, urgent
  status            text        not null default 'created'
                    check (status in ('scheduled', 'created', 'assigned', 'running', 'review_pending',
                                      'completed', 'failed', 'agent_lost', 'cancelled')),
  execution_mode    text        not null default 'undecided'
                    check (execution_mode in ('undecided', 'ssh_cli', 'http_pull')),
  created_mode      text        not null default 'undecided' -- what it has again whenever it returns to the queue
                    check (created_mode in ('undecided', 'ssh_cli', 'http_pull')),
  spec_version      integer     not null default 1, -- newest version in task_specs
  claimed_version   integer,                        -- the version that the last claim handed out

  lease             bigint      not null default 0, -- the fencing number
  holder            uuid,                           -- the session that has the lease, else null
  host_agent_id     bigint,                         -- the slot, while held by a run on a host
  assigned_agent_id text,                           -- holder or pin's target, afterwards the last holder
  assigned_host     text,                           -- the same as host_id/agent_type
  pinned_to         text,                           -- an operator's choice: agent_id, host_id or host_id/agent_type

  attempt           integer     not null default 0,
  retry_count       integer     not null default 0,
  refund_count      integer     not null default 0,
  review_count      integer     not null default 0,
  max_retries       integer     not null default 2  check (max_retries between 0 and 100),
  timeout_secs      integer     not null default 3600 check (timeout_secs between 1 and 2592000),

  run_at            timestamptz, -- while scheduled
  pinned_until      timestamptz, -- while pinned and not leased
  deadline_at       timestamptz, -- while leased
  due_at            timestamptz generated always as (coalesce(deadline_at, pinned_until, run_at)) stored,
  ready_at          timestamptz not null default now(), -- when it last became created
  created_at        timestamptz not null default now(),
  assigned_at       timestamptz,
  started_at        timestamptz,
  completed_at      timestamptz,
  last_activity_at  timestamptz,

  issue_version     bigint,      -- the version of its forge_issues row that has been applied
  issue_open        boolean,     -- whether that version was open
  pr_url            text,
  pr_title          text,
  error             text,        -- why the last attempt failed

  constraint tasks_pkey primary key (task_id), -- also the order of lists: ids follow the database's clock
  constraint tasks_key  unique (key),
  constraint tasks_held check (holder is null or deadline_at is not null)
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
        autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_limit = 1000);

-- What dequeue may take; its order is the claim's.
create index tasks_ready_pull on fleet.tasks (lane_id, priority desc, seq)
  where status = 'created' and execution_mode in ('http_pull', 'undecided');
-- What the dispatcher may take; phase 2 also reads the undecided ones here.
create index tasks_ready_push on fleet.tasks (lane_id, priority desc, seq)
  where status = 'created' and execution_mode in ('ssh_cli', 'undecided');
-- Who holds what (slots by host agent, leases by session), and who is to have what (pins).
create index tasks_held on fleet.tasks (host_agent_id, holder, pinned_to)
  where holder is not null or pinned_to is not null;
-- What the scheduler and the reaper look at next.
create index tasks_due on fleet.tasks (due_at) where due_at is not null;

-- What is to be done, versioned: a claim names the version that it handed out.
create table fleet.task_specs (
  task_id      uuid        not null,
  version      integer     not null default 1,
  title        text        not null,
  body         text        not null default '',
  labels       text[]      not null default '{}',
  capabilities text[]      not null default '{}', -- the labels that are requirements, sorted
  repo         jsonb,
  issue_url    text,
  notes        jsonb       not null default '[]',
  request_hash bytea,      -- of the creating request, to tell a repetition from a conflict
  created_at   timestamptz not null default now(),
  primary key (task_id, version)
);

-- Which request made which tasks, for the header Idempotency-Key.
create table fleet.idempotency_keys (
  idempotency_key text        primary key,
  request_hash    bytea       not null,
  task_ids        uuid[]      not null,
  created_at      timestamptz not null default now()
);

-- The event log. xid is the writer's transaction: readers go by (xid, event_id), see sql/read_event_horizon.sql.
create sequence fleet.event_ids;
create table fleet.task_events (
  event_id    bigint      not null default nextval('fleet.event_ids'),
  xid         xid8        not null default pg_current_xact_id(),
  task_id     uuid        not null,
  at          timestamptz not null default now(),
  type        text        not null,
  from_status text,
  to_status   text,       -- null where the status did not change
  actor       text        not null,
  lease       bigint      not null default 0,
  attempt     integer     not null default 0,
  detail      jsonb       not null default '{}',
  primary key (xid, event_id, at)
) partition by range (at);
create index task_events_task on fleet.task_events (task_id, event_id);
-- To find the xid of an event_id; ids grow with the table, so a block range index is enough.
create index task_events_id on fleet.task_events using brin (event_id) with (autosummarize = on);

-- Receipts as sent, one for each (task, lease).
create table fleet.receipts (
  task_id     uuid        not null,
  lease       bigint      not null,
  attempt     integer     not null,
  agent_id    text        not null, -- or host_id/agent_type
  status      text        not null check (status in ('completed', 'failed', 'partial')),
  body        jsonb       not null,
  body_hash   bytea       not null,
  received_at timestamptz not null default now(),
  primary key (task_id, lease)
);

-- One SSH run: one start of a CLI on a host, named by the lease under which it started.
create table fleet.runs (
  task_id       uuid        not null,
  run_lease     bigint      not null,
  attempt       integer     not null,
  host_agent_id bigint      not null,
  command       text[]      not null,
  prompt_via    text        not null check (prompt_via in ('stdin', 'file')),
  output        text        not null,
  work_dir      text        not null,
  timeout_secs  integer     not null,
  state         text        not null default 'starting' check (state in ('starting', 'running', 'ended')),
  next_offset   bigint      not null default 0, -- bytes of output stored
  created_at    timestamptz not null default now(),
  started_at    timestamptz,
  ended_at      timestamptz,
  primary key (task_id, run_lease)
) with (fillfactor = 70);

-- Output, by the lease under which it was produced (run_lease for runs). "offset" counts bytes.
create table fleet.task_logs (
  task_id  uuid        not null,
  lease    bigint      not null,
  "offset" bigint      not null,
  attempt  integer     not null,
  at       timestamptz not null default now(),
  data     bytea       not null,
  primary key (task_id, lease, "offset", at)
) partition by range (at);

-- One registration of an agent, or one boot of a replica. last_heartbeat_at is in no index, so a heartbeat is HOT.
create table fleet.sessions (
  session_id        uuid        primary key default fleet.uuid_v7(),
  kind              text        not null check (kind in ('agent', 'replica')),
  subject           text        not null, -- agent_id or replica_id
  ttl               interval    not null, -- silent this long is dead
  started_at        timestamptz not null default now(),
  last_heartbeat_at timestamptz not null default now(),
  steady_since      timestamptz not null default now(), -- has beaten without a gap since
  ended_at          timestamptz,
  end_reason        text
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
create unique index sessions_live on fleet.sessions (kind, subject) where ended_at is null;
create index sessions_ended on fleet.sessions (ended_at) where ended_at is not null;

create table fleet.agents (
  agent_id              text        primary key,
  agent_type            text        not null,
  hostname              text        not null,
  capabilities          text[]      not null,
  max_concurrency       integer     not null check (max_concurrency between 1 and 10000),
  metadata              jsonb       not null default '{}',
  session_id            uuid        not null, -- the newest session, live or ended
  token_digest          bytea       not null, -- SHA-256
  token_used            boolean     not null default false,
  previous_token_digest bytea,                -- may only register, until the new token is first used
  drained_at            timestamptz,
  registered_at         timestamptz not null default now()
);
create unique index agents_token on fleet.agents (token_digest);
create index agents_previous_token on fleet.agents (previous_token_digest) where previous_token_digest is not null;

create table fleet.replicas (
  replica_id      text        primary key,
  session_id      uuid        not null, -- the newest boot
  hostname        text        not null,
  version         text        not null,
  machine         text        not null, -- machine id and container id
  hosts_listed_at timestamptz            -- when this boot had upserted its hosts
);

create table fleet.hosts (
  host_id    text        primary key,
  hostname   text        not null,
  work_dir   text        not null,
  machine    text,       -- for localhost: the one machine that it is
  drained_at timestamptz,
  created_at timestamptz not null default now()
);

-- One CLI on one host: what slots are counted by.
create table fleet.host_agents (
  host_agent_id   bigint generated always as identity primary key,
  host_id         text   not null,
  agent_type      text   not null,
  capabilities    text[] not null,
  max_concurrency integer not null check (max_concurrency between 1 and 10000),
  parked_until    timestamptz,
  parked_reason   text,
  unique (host_id, agent_type)
);

-- Which replica boot lists which host, and what its probe found.
create table fleet.replica_hosts (
  session_id uuid        not null,
  host_id    text        not null,
  online     boolean     not null default false,
  reason     text        default 'not probed yet',
  missing    text[]      not null default '{}', -- agent types whose CLI the probe did not find
  checked_at timestamptz,
  primary key (session_id, host_id)
);

-- What an agent has to be told: these leases of its session were cancelled.
create table fleet.cancel_notices (
  session_id uuid        not null,
  task_id    uuid        not null,
  lease      bigint      not null,
  at         timestamptz not null default now(),
  primary key (session_id, task_id, lease)
);

-- The newest state seen of each issue, also while its task is leased, ended or absent.
create table fleet.forge_issues (
  key              text        primary key, -- org/repo#42, as the task's
  version          bigint      not null default 1,
  reopened_version bigint      not null default 0, -- the version that a `reopened` brought
  updated_at       timestamptz not null,
  body_hash        bytea       not null, -- of the delivery
  state            jsonb       not null,
  received_at      timestamptz not null default now()
);

-- Not partitioned: it enforces uniqueness.
create table fleet.webhook_deliveries (
  delivery_id text        primary key,
  body_hash   bytea       not null,
  event       text        not null,
  action      text        not null,
  result      text        not null check (result in ('created', 'updated', 'ignored', 'duplicate')),
  task_id     uuid,
  reason      text,
  received_at timestamptz not null default now()
);

-- What still has to be told to the forge.
create table fleet.forge_outbox (
  outbox_id  bigint generated always as identity primary key,
  task_id    uuid        not null,
  kind       text        not null,
  payload    jsonb       not null,
  tries      integer     not null default 0,
  not_before timestamptz not null default now(),
  created_at timestamptz not null default now(),
  done_at    timestamptz
);
create index forge_outbox_open on fleet.forge_outbox (not_before) where done_at is null;
