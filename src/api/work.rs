//! Work: what an agent does with a task between claim and receipt.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::json;
use warp::{Filter, Reply, filters::BoxedFilter, http::StatusCode, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call},
    current, detached,
    error::{ApiError, bad_word},
    ok, render,
    tasks::resolve,
    v1,
};
use crate::{
    coordinator::{self, Matchmaker, Replica},
    model::{Actor, CapabilitySet, ExecutionMode, Lease, Status, TaskId, check_text},
    store::{EndLease, Ended, HeldLease, Outcome},
};

/// A poll waits so long at most, in seconds; what is asked above it counts as this.
const MAX_WAIT: i64 = 50;
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
}

async fn dequeue(mut call: Call) -> Answer {
    call.principal().await?;
    let body: DequeueBody = call.json()?;
    let agent = call.agent(&body.agent_id).await?;
    if !agent.live {
        return Err(ApiError::session_ended());
    }
    let wait = wait_of(body.wait_secs)?;
    let capabilities = body.capabilities.map(CapabilitySet::offered).transpose()?;
    if call.replica.shutdown.is_triggered() {
        return Err(ApiError::unavailable("this replica stops; ask another one"));
    }
    let limit = if wait.is_zero() { SCAN_LIMIT } else { wait };
    call.wait();
    let mut place = Matchmaker::wait(&call.replica, agent.session, capabilities, wait.is_zero());
    let answer = place.answer(limit).await;
    match answer {
        coordinator::Answer::Task(task_id, _) => {
            let task = current(&call.replica, task_id).await?;
            let reply = ok(&task);
            place.delivered();
            reply
        }
        coordinator::Answer::Nothing => Ok(StatusCode::NO_CONTENT.into_response()),
        coordinator::Answer::SessionEnded => Err(ApiError::session_ended()),
        coordinator::Answer::Unavailable => Err(ApiError::database_away()),
    }
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
    let state = call.replica.store.check_lease(id).await?;
    let state = state.ok_or_else(|| ApiError::not_found("there is no such task"))?;
    if state.execution_mode == ExecutionMode::SshCli {
        return Err(ApiError::refused(
            "illegal_transition",
            "the task runs on a host (ssh_cli); its status is not an agent's to say",
        ));
    }
    if status != Status::Running {
        return Err(ApiError::refused(
            "illegal_transition",
            format!(
                "an agent can only say `running`, not `{status}`; send a receipt to end the task"
            ),
        ));
    }
    if !agent.live {
        return Err(ApiError::lease_lost());
    }
    let held = HeldLease { task_id: id, lease: Lease(body.lease), holder: agent.session };
    let detail = match body.progress {
        Some(progress) => json!({"progress": progress}),
        None => json!({}),
    };
    call.replica.store.start_task(&held, &Actor::Agent(body.agent_id), detail, None).await??;
    ok(&current(&call.replica, id).await?)
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
    let backoff = call.replica.config.tasks.retry_backoff;
    match call.replica.store.end_leases(&[end], backoff).await?.first() {
        Some(Ended::Now(_) | Ended::Before) => {}
        Some(Ended::Not(refusal)) => return Err((*refusal).into()),
        None => return Err(ApiError::internal()),
    }
    call.replica.wake.ready();
    ok(&current(&call.replica, id).await?)
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
