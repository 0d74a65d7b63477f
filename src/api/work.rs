//! Work: what an agent does with a task between claim and receipt.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use warp::{Filter, Reply, filters::BoxedFilter, http::StatusCode, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call},
    detached,
    error::{ApiError, bad_word},
    full, ok, render,
    tasks::resolve,
    v1,
};
use crate::{
    coordinator::{self, Matchmaker, Replica, settle},
    model::{
        Actor, CapabilitySet, ExecutionMode, Lease, SessionId, Status, Task, TaskId, check_text,
    },
    store::{EndLease, Ended, HeldLease, Outcome, Refusal, Start, Waiter},
};

/// A poll waits so long at most, in seconds; what is asked above it counts as this.
const MAX_WAIT: i64 = 50;
/// Tasks of one dequeue.
const MAX_TASKS: usize = 100;
/// Bytes of a request's name.
const MAX_REQUEST_ID: usize = 200;
/// A scan takes milliseconds; a caller who does not want to wait is not kept longer than this by a busy database.
const SCAN_LIMIT: Duration = Duration::from_secs(10);

/// `dequeue`, `status`, `release`.
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let dequeue = v1()
        .and(warp::path!("tasks" / "dequeue"))
        .and(warp::post())
        .and(call(replica, BODY))
        // Not detached: when the client hangs up, its place in the queue goes with the handler.
        .then(|call: Call| async move { render(dequeue(call).await) });
    let status = v1()
        .and(warp::path!("tasks" / String / "status"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(status(call, id)));
    let release = v1()
        .and(warp::path!("tasks" / String / "release"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(release(call, id)));
    dequeue.or(status).unify().or(release).unify().boxed()
}

#[derive(Debug, Deserialize)]
struct DequeueBody {
    agent_id: String,
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    wait_secs: i64,
    max_tasks: Option<i64>,
    request_id: Option<String>,
}

/// What an agent is given that asks for several.
#[derive(Serialize)]
struct Tasks<'a> {
    tasks: &'a [Task],
}

async fn dequeue(mut call: Call) -> Answer {
    call.principal().await?;
    let body: DequeueBody = call.json()?;
    let agent = call.agent(&body.agent_id).await?;
    if !agent.live {
        return Err(ApiError::session_ended());
    }
    let wait = wait_of(body.wait_secs)?;
    let mut waiter = Waiter::one(agent.session);
    waiter.capabilities = body.capabilities.map(CapabilitySet::offered).transpose()?;
    if let Some(max_tasks) = body.max_tasks {
        waiter.max_tasks = match usize::try_from(max_tasks) {
            Ok(many @ 1..=MAX_TASKS) => many,
            _ => {
                return Err(ApiError::bad_request(format!(
                    "max_tasks: must be a whole number from 1 to {MAX_TASKS}"
                )));
            }
        };
    }
    if let Some(request_id) = &body.request_id {
        check_text("request_id", request_id, MAX_REQUEST_ID)?;
        if request_id.is_empty() {
            return Err(crate::model::InvalidText::Empty { field: "request_id" }.into());
        }
        waiter.claim_id = claim_id("dequeue", request_id);
        waiter.repeatable = true;
    }
    if call.replica.shutdown.is_draining() {
        return Err(ApiError::unavailable("this replica stops; ask another one"));
    }
    let limit = if wait.is_zero() { SCAN_LIMIT } else { wait };
    call.wait();
    let mut place = Matchmaker::wait(&call.replica, waiter, wait.is_zero());
    let answer = place.answer(limit).await;
    match answer {
        coordinator::Answer::Tasks(mut handed) => {
            let tasks: Vec<Task> = handed.take_tasks().into_iter().map(full).collect();
            let reply = match tasks.as_slice() {
                [one] if body.max_tasks.is_none() => ok(one),
                tasks => ok(&Tasks { tasks }),
            };
            handed.delivered();
            reply
        }
        coordinator::Answer::Nothing => Ok(StatusCode::NO_CONTENT.into_response()),
        coordinator::Answer::SessionEnded => Err(ApiError::session_ended()),
        coordinator::Answer::Unavailable => Err(ApiError::database_away()),
    }
}

/// What names a request that claims, so that the same one again is answered with the same tasks.
pub(super) fn claim_id(kind: &str, request: &str) -> Uuid {
    let digest: [u8; 32] = Sha256::digest(format!("{kind}:{request}")).into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(id)
}

/// How long a poll waits.
fn wait_of(wait_secs: i64) -> Result<Duration, ApiError> {
    u64::try_from(wait_secs.min(MAX_WAIT))
        .map(Duration::from_secs)
        .map_err(|_| ApiError::bad_request("wait_secs: must not be negative"))
}

/// The lease that an agent's write names; `lease_lost` when its session has ended.
pub(super) async fn held(
    call: &Call,
    agent_id: &str,
    task_id: TaskId,
    lease: i64,
) -> Result<HeldLease, ApiError> {
    let agent = call.agent(agent_id).await?;
    if !agent.live {
        return Err(ApiError::lease_lost());
    }
    Ok(HeldLease { task_id, lease: Lease(lease), holder: agent.session })
}

#[derive(Debug, Deserialize)]
struct StatusBody {
    agent_id: String,
    lease: i64,
    status: String,
    progress: Option<String>,
}

async fn status(call: Call, id: String) -> Answer {
    call.principal().await?;
    let body: StatusBody = call.json()?;
    let agent = call.agent(&body.agent_id).await?;
    if let Some(progress) = &body.progress {
        check_text("progress", progress, 1_000)?;
    }
    let status: Status = body.status.parse().map_err(|e| bad_word("status", &e))?;
    let id = resolve(&call, &id).await?;
    if status != Status::Running {
        let state = call.replica.store.check_lease(id).await?;
        let state = state.ok_or_else(|| ApiError::not_found("there is no such task"))?;
        if state.execution_mode == ExecutionMode::SshCli {
            return Err(Refusal::OnHost.into());
        }
        return Err(ApiError::refused(
            "illegal_transition",
            format!(
                "an agent can only say `running`, not `{status}`; send a receipt to end the task"
            ),
        ));
    }
    // An ended session holds nothing; whose the task is tells the store.
    let holder = if agent.live { agent.session } else { SessionId(Uuid::nil()) };
    let start = Start {
        held: HeldLease { task_id: id, lease: Lease(body.lease), holder },
        actor: Actor::Agent(body.agent_id),
        detail: match body.progress {
            Some(progress) => json!({"progress": progress}),
            None => json!({}),
        },
        timeout_secs: None,
    };
    let started = coordinator::start(&call.replica, start).await?;
    match (started.status, started.task) {
        (Ok(_), Some(task)) => ok(&full(task)),
        (Ok(_), None) => Err(ApiError::internal()),
        (Err(refusal), _) => Err(refusal.into()),
    }
}

#[derive(Debug, Deserialize)]
struct ReleaseBody {
    agent_id: String,
    lease: i64,
    reason: Option<String>,
    retry_after_secs: Option<i64>,
}

async fn release(call: Call, id: String) -> Answer {
    call.principal().await?;
    let body: ReleaseBody = call.json()?;
    if let Some(reason) = &body.reason {
        check_text("reason", reason, 2_000)?;
    }
    let wait_secs = match body.retry_after_secs {
        None => None,
        Some(secs @ 0..=2_592_000) => i32::try_from(secs).ok(),
        Some(_) => {
            return Err(ApiError::bad_request(
                "retry_after_secs: must be a whole number from 0 to 2592000",
            ));
        }
    };
    // The credential first: who may not ask learns nothing of the task.
    call.agent(&body.agent_id).await?;
    let id = resolve(&call, &id).await?;
    let held = held(&call, &body.agent_id, id, body.lease).await?;
    let end = EndLease {
        held,
        outcome: Outcome::Released,
        reason: body.reason,
        wait_secs,
        receipt: None,
        actor: Actor::Agent(body.agent_id),
    };
    let mut settled = settle(&call.replica, vec![end], None).await?;
    match (settled.ended.pop(), settled.tasks.pop().flatten()) {
        (Some(Ended::Now(_) | Ended::Before), Some(task)) => ok(&full(task)),
        (Some(Ended::Not(refusal)), _) => Err(refusal.into()),
        _ => Err(ApiError::internal()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_capped_and_never_negative() {
        for (asked, waits) in [(0, 0), (1, 1), (50, 50), (51, 50), (i64::MAX, 50)] {
            assert_eq!(wait_of(asked).ok(), Some(Duration::from_secs(waits)), "{asked}");
        }
        assert!(wait_of(-1).is_err() && wait_of(i64::MIN).is_err());
    }
}
