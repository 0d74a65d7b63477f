//! Tasks: created, listed, shown; and what an operator does to them.

use std::{sync::Arc, time::SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use warp::{Filter, filters::BoxedFilter, http::StatusCode, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call, from_value, task_ref},
    current, detached,
    error::{ApiError, bad_word},
    full, ok, page,
    principal::Principal,
    task_body::TaskBody,
    v1, with_status,
};
use crate::{
    coordinator::{self, Replica},
    model::{Event, ExecutionMode, Task, TaskId, TaskRef, check_text},
    store::{Created, Creation, NewRequest, NewTask, OperatorRefusal, TargetKind, TaskFilter},
    traces::{Kind, Span},
};

/// Tasks in one array.
const MAX_ARRAY: usize = 1_000;
/// Bytes of an Idempotency-Key.
const MAX_IDEMPOTENCY_KEY: usize = 200;

/// `/api/v1/tasks`, `/api/v1/tasks/{id}`, and the operator's acts.
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let create = v1()
        .and(warp::path!("tasks"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|call: Call| detached(create(call)));
    let list = v1()
        .and(warp::path!("tasks"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call| detached(list(call)));
    let show = v1()
        .and(warp::path!("tasks" / String))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|id, call| detached(show(call, id)));
    let assign = v1()
        .and(warp::path!("tasks" / String / "assign"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(assign(call, id)));
    let retry = v1()
        .and(warp::path!("tasks" / String / "retry"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(retry(call, id)));
    let cancel = v1()
        .and(warp::path!("tasks" / String / "cancel"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(cancel(call, id)));
    create
        .or(list)
        .unify()
        .or(show)
        .unify()
        .or(assign)
        .unify()
        .or(retry)
        .unify()
        .or(cancel)
        .unify()
        .boxed()
}

async fn create(call: Call) -> Answer {
    let actor = call.operator().await?;
    let config = &call.replica.config;
    let (mut tasks, many) = match call.json_value()? {
        Value::Array(items) => {
            if items.is_empty() || items.len() > MAX_ARRAY {
                return Err(ApiError::bad_request(format!(
                    "an array of tasks must have 1 to {MAX_ARRAY} items, this one has {}",
                    items.len()
                )));
            }
            let tasks = items
                .into_iter()
                .enumerate()
                .map(|(place, item)| {
                    from_value::<TaskBody>(item)
                        .and_then(|body| body.check(config))
                        .map_err(|error| error.in_item(place))
                })
                .collect::<Result<Vec<_>, _>>()?;
            (tasks, true)
        }
        one => (vec![from_value::<TaskBody>(one)?.check(config)?], false),
    };
    refuse_repeated_keys(&tasks)?;
    let idempotency_key = idempotency_key(&call)?;
    let mut spans = begin_spans(&call, &mut tasks);
    let request = NewRequest { tasks, idempotency_key, actor };
    let created = coordinator::create(&call.replica, request)
        .await
        .inspect_err(|_| spans.iter_mut().for_each(Span::fail))?;
    end_spans(spans, &created);
    let status = match created.outcome {
        Created::New(_) => StatusCode::CREATED,
        Created::Repeated(_) => StatusCode::OK,
        Created::Conflict { key } => {
            return Err(ApiError::conflict(format!(
                "the key `{key}` was used before for another body; nothing was created"
            )));
        }
    };
    let tasks: Vec<Task> = created.tasks.into_iter().map(full).collect();
    match tasks.as_slice() {
        [one] if !many => with_status(status, one),
        all => with_status(status, &all),
    }
}

/// Each task has a span that makes it, in the caller's trace or a new one, and what follows is to be a child of that.
fn begin_spans(call: &Call, tasks: &mut [NewTask]) -> Vec<Span> {
    let (caller, now) = (call.traceparent(), SystemTime::now());
    let begin = |task: &mut NewTask| {
        let span = Span::begin("create", Kind::Request, caller, now);
        task.traceparent = span.traceparent();
        span
    };
    tasks.iter_mut().map(begin).collect()
}

fn end_spans(mut spans: Vec<Span>, created: &Creation) {
    let outcome = match created.outcome {
        Created::New(_) => "created",
        Created::Repeated(_) => "repeated",
        Created::Conflict { .. } => "conflict",
    };
    for span in &mut spans {
        span.set("task.outcome", outcome);
    }
    for (span, task) in spans.iter_mut().zip(&created.tasks) {
        span.set("task.id", task.task_id);
        span.set("task.key", &task.key);
    }
}

fn refuse_repeated_keys(tasks: &[NewTask]) -> Result<(), ApiError> {
    let mut keys: Vec<&String> = tasks.iter().filter_map(|task| task.key.as_ref()).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ApiError::bad_request(format!(
            "key: `{}` stands twice in one array; a key names one task",
            pair[0]
        ))),
        None => Ok(()),
    }
}

fn idempotency_key(call: &Call) -> Result<Option<String>, ApiError> {
    let Some(value) = call.headers.get("idempotency-key") else { return Ok(None) };
    let key = value
        .to_str()
        .map_err(|_| ApiError::bad_request("Idempotency-Key must be visible ASCII"))?
        .trim();
    check_text("Idempotency-Key", key, MAX_IDEMPOTENCY_KEY)?;
    Ok((!key.is_empty()).then(|| key.to_owned()))
}

async fn list(call: Call) -> Answer {
    call.reader().await?;
    let word = |name| call.query(name);
    let limit = call.limit()?;
    let before = match call.query("cursor")? {
        Some(cursor) => match TaskRef::parse(&cursor) {
            TaskRef::Id(id) => Some(id),
            TaskRef::Key(_) => {
                return Err(ApiError::bad_request("cursor: must be the next_cursor of a page"));
            }
        },
        None => None,
    };
    let filter = TaskFilter {
        status: parse(word("status")?, "status")?,
        agent_id: word("agent_id")?,
        execution_mode: parse(word("execution_mode")?, "execution_mode")?,
        capability: word("capability")?,
        source: parse(word("source")?, "source")?,
        q: word("q")?,
        before,
        limit,
    };
    let tasks = call.replica.store.list_tasks(&filter).await?;
    page(&tasks, limit, |task| task.task_id.to_string())
}

fn parse<T>(text: Option<String>, field: &str) -> Result<Option<T>, ApiError>
where
    T: std::str::FromStr<Err = crate::model::UnknownWord>,
{
    text.map(|t| t.parse().map_err(|e| bad_word(field, &e))).transpose()
}

async fn show(call: Call, id: String) -> Answer {
    let principal = call.principal().await?;
    let id = resolve(&call, &id).await?;
    let history = call.replica.store.get_history(id).await?;
    let (task, events, receipts) =
        history.ok_or_else(|| ApiError::not_found("there is no such task"))?;
    let task = full(task);
    may_see(principal, &task, &events)?;
    let mut body = serde_json::to_value(&task).map_err(|_| ApiError::internal())?;
    body["events"] = json!(events);
    body["receipts"] = json!(receipts);
    ok(&body)
}

/// Readers see all; an agent what is, or was, leased or pinned to it. The events are the task's, and count only for an
/// agent.
pub(super) fn may_see(
    principal: &Principal,
    task: &Task,
    events: &[Event],
) -> Result<(), ApiError> {
    match principal {
        Principal::Admin | Principal::Operator | Principal::Viewer => Ok(()),
        // Any agent's is its own.
        Principal::SharedAgent => {
            let agents = task.assigned_agent_id.is_some()
                || events.iter().any(|event| event.actor.starts_with("agent:"));
            if agents { Ok(()) } else { Err(ApiError::forbidden("agents see only agents' tasks")) }
        }
        Principal::Enrollment => {
            Err(ApiError::forbidden("the enrollment token registers agents and nothing else"))
        }
        Principal::Agent(owner) if !(owner.current && owner.agent.live) => {
            Err(ApiError::session_ended())
        }
        Principal::Agent(owner) => {
            let agent = owner.agent.agent_id.as_str();
            let its = task.assigned_agent_id.as_deref() == Some(agent)
                || task.pinned_to.as_deref() == Some(agent)
                || events.iter().any(|event| {
                    event.actor.strip_prefix("agent:") == Some(agent)
                        || event.detail["pinned_to"] == agent
                });
            if its { Ok(()) } else { Err(ApiError::forbidden("an agent sees only its own tasks")) }
        }
    }
}

/// The id of a task that a path names.
pub(super) async fn resolve(call: &Call, segment: &str) -> Result<TaskId, ApiError> {
    let task = task_ref(segment)?;
    let id = call.replica.store.resolve(&task).await?;
    id.ok_or_else(|| ApiError::not_found("there is no such task"))
}

#[derive(Debug, Deserialize)]
struct AssignBody {
    agent_id: String,
    execution_mode: Option<String>,
    #[serde(default)]
    force: bool,
}

async fn assign(call: Call, id: String) -> Answer {
    let actor = call.operator().await?;
    let body: AssignBody = call.json()?;
    check_text("agent_id", &body.agent_id, 300)?;
    let wanted: Option<ExecutionMode> = parse(body.execution_mode, "execution_mode")?;
    let id = resolve(&call, &id).await?;
    let store = &call.replica.store;
    let task = current(&call.replica, id).await?;
    let target = store.find_target(&body.agent_id, id).await?.ok_or_else(|| {
        ApiError::not_found(format!(
            "`{}` is neither a registered agent nor a configured host",
            body.agent_id
        ))
    })?;
    let (mode, what) = match target.kind {
        TargetKind::Agent => (ExecutionMode::HttpPull, "an agent"),
        TargetKind::Host => (ExecutionMode::SshCli, "a host"),
    };
    if wanted.is_some_and(|w| w != mode) {
        return Err(ApiError::bad_request(format!(
            "execution_mode: `{}` is {what}, so the mode can only be {mode}; leave it out",
            body.agent_id
        )));
    }
    if !target.capable && !body.force {
        return Err(ApiError::refused(
            "capability_mismatch",
            format!(
                "`{}` lacks something of what the task requires ({}); say `force` to assign it all the same",
                body.agent_id,
                task.capabilities.join(", ")
            ),
        ));
    }
    let reservation = call.replica.config.lease.assign_reservation;
    match store.assign_task(id, &body.agent_id, mode, reservation, &actor).await? {
        Ok(()) => {}
        Err(OperatorRefusal::Status(status)) => {
            return Err(ApiError::refused(
                "task_not_assignable",
                format!("a task that is {status} cannot be assigned; only one that waits can"),
            ));
        }
        Err(missing) => return Err(ApiError::operator(missing, "assigned")),
    }
    call.replica.wake_ready();
    ok(&current(&call.replica, id).await?)
}

#[derive(Debug, Default, Deserialize)]
struct RetryBody {
    execution_mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct CancelBody {
    reason: Option<String>,
}

/// A body that may be left out altogether.
pub(super) fn optional_json<T: Default + serde::de::DeserializeOwned>(
    call: &Call,
) -> Result<T, ApiError> {
    match &call.body {
        Ok(body) if body.is_empty() => Ok(T::default()),
        _ => call.json(),
    }
}

async fn retry(call: Call, id: String) -> Answer {
    let actor = call.operator().await?;
    let body: RetryBody = optional_json(&call)?;
    let mode = parse(body.execution_mode, "execution_mode")?;
    let id = resolve(&call, &id).await?;
    call.replica
        .store
        .retry_task(id, &actor, mode)
        .await?
        .map_err(|refusal| ApiError::operator(refusal, "retried"))?;
    call.replica.wake_ready();
    ok(&current(&call.replica, id).await?)
}

async fn cancel(call: Call, id: String) -> Answer {
    let actor = call.operator().await?;
    let body: CancelBody = optional_json(&call)?;
    if let Some(reason) = &body.reason {
        check_text("reason", reason, 2_000)?;
    }
    let id = resolve(&call, &id).await?;
    call.replica
        .store
        .cancel_task(id, &actor, body.reason.as_deref())
        .await?
        .map_err(|refusal| ApiError::operator(refusal, "cancelled"))?;
    // A slot is free, and a run may have to be ended.
    call.replica.wake_ready();
    call.replica.wake_revoked();
    ok(&current(&call.replica, id).await?)
}
