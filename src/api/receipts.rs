//! Receipts: what an attempt produced. One of them ends the lease; the same one again changes nothing.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{Call, LARGE_BODY, call, from_value, task_ref},
    current, detached,
    error::ApiError,
    ok,
    tasks::resolve,
    v1,
};
use crate::{
    coordinator::Replica,
    model::{Actor, Artifact, Lease, Receipt, ReceiptStatus, SessionId, check_text},
    store::{EndLease, Ended, HeldLease, Outcome},
};

/// Bytes of a summary, an error, an address.
const MAX_SUMMARY: usize = 64 << 10;
const MAX_ADDRESS: usize = 4_000;
/// Artifacts of one receipt.
const MAX_ARTIFACTS: usize = 100;

/// `POST /api/v1/tasks/{id}/complete`, `POST /api/v1/receipts`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let by_task = v1()
        .and(warp::path!("tasks" / String / "complete"))
        .and(warp::post())
        .and(call(replica, LARGE_BODY))
        .then(|id: String, call| detached(complete(call, Some(id))));
    let by_body = v1()
        .and(warp::path!("receipts"))
        .and(warp::post())
        .and(call(replica, LARGE_BODY))
        .then(|call| detached(complete(call, None)));
    by_task.or(by_body).unify().boxed()
}

/// Where a receipt belongs; the rest of the body is the receipt itself.
#[derive(Debug, Deserialize)]
struct Address {
    agent_id: String,
    task_id: Option<String>,
    lease: Option<i64>,
}

async fn complete(call: Call, path: Option<String>) -> Answer {
    call.principal().await?;
    let value = call.json_value()?;
    if value.is_array() {
        return Err(ApiError::bad_request("receipts are taken one at a time; send an object"));
    }
    let address: Address = from_value(value.clone())?;
    let receipt = read_receipt(value)?;
    let agent = call.agent(&address.agent_id).await?;
    let id = match (&path, &address.task_id) {
        (Some(path), body) => {
            let id = resolve(&call, path).await?;
            if let Some(body) = body
                && call.replica.store.resolve(&task_ref(body)?).await? != Some(id)
            {
                return Err(ApiError::bad_request("task_id: names another task than the address"));
            }
            id
        }
        (None, Some(body)) => {
            check_text("task_id", body, 500)?;
            let id = call.replica.store.resolve(&crate::model::TaskRef::parse(body)).await?;
            id.ok_or_else(|| ApiError::not_found("there is no such task"))?
        }
        (None, None) => return Err(ApiError::bad_request("missing field `task_id`")),
    };
    let lease = match address.lease {
        Some(lease) => lease,
        None => only_lease(&call, id, &address.agent_id).await?,
    };
    let outcome = match receipt.status {
        ReceiptStatus::Completed => Outcome::Completed,
        ReceiptStatus::Failed | ReceiptStatus::Partial => Outcome::Failed,
    };
    let reason = match receipt.status {
        ReceiptStatus::Completed => None,
        ReceiptStatus::Failed | ReceiptStatus::Partial => {
            let why = receipt.error.as_deref().or(receipt.summary.as_deref());
            Some(why.map_or_else(
                || format!("the receipt says {}", receipt.status),
                |text| crate::model::clean_text(text, 2_000),
            ))
        }
    };
    // Also with an ended session, which holds nothing: a receipt that is stored already is answered as it was.
    let holder = if agent.live { agent.session } else { SessionId(uuid::Uuid::nil()) };
    let end = EndLease {
        held: HeldLease { task_id: id, lease: Lease(lease), holder },
        outcome,
        reason,
        wait_secs: None,
        receipt: Some(receipt),
        actor: Actor::Agent(address.agent_id),
    };
    let backoff = call.replica.config.tasks.retry_backoff;
    match call.replica.store.end_leases(&[end], backoff).await?.first() {
        Some(Ended::Now(_)) => call.replica.wake.ready(),
        Some(Ended::Before) => {}
        Some(Ended::Not(refusal)) => return Err((*refusal).into()),
        None => return Err(ApiError::internal()),
    }
    ok(&current(&call.replica, id).await?)
}

/// The lease may be left out only while the agent has claimed this task exactly once.
async fn only_lease(
    call: &Call,
    id: crate::model::TaskId,
    agent_id: &str,
) -> Result<i64, ApiError> {
    let actor = Actor::Agent(agent_id.to_owned()).to_string();
    let events = call.replica.store.list_task_events(id).await?;
    let mut claims = events
        .iter()
        .filter(|e| e.event_type == crate::model::EventType::Claimed && e.actor == actor);
    match (claims.next(), claims.next()) {
        (Some(claim), None) => Ok(claim.lease),
        (None, _) => {
            // An unknown task is not a lease that was lost.
            current(&call.replica, id).await?;
            Err(ApiError::lease_lost())
        }
        _ => Err(ApiError::bad_request(
            "missing field `lease`: the agent has claimed this task more than once, so it must say which claim it means",
        )),
    }
}

fn read_receipt(value: Value) -> Result<Receipt, ApiError> {
    // Serde would also take an array for a struct, its fields by their order.
    if value["usage"].is_array() {
        return Err(ApiError::bad_request("usage: must be an object"));
    }
    if value["artifacts"].as_array().is_some_and(|all| !all.iter().all(Value::is_object)) {
        return Err(ApiError::bad_request("artifacts: each must be an object"));
    }
    let receipt: Receipt = from_value(value)?;
    for (field, text) in [("summary", &receipt.summary), ("error", &receipt.error)] {
        if let Some(text) = text {
            check_text(field, text, MAX_SUMMARY)?;
        }
    }
    if receipt.artifacts.len() > MAX_ARTIFACTS {
        return Err(ApiError::bad_request(format!(
            "artifacts: at most {MAX_ARTIFACTS} are allowed"
        )));
    }
    for artifact in &receipt.artifacts {
        let (Artifact::Pr { url: text }
        | Artifact::Url { url: text }
        | Artifact::File { path: text }
        | Artifact::Commit { sha: text }) = artifact;
        check_text("artifacts", text, MAX_ADDRESS)?;
    }
    if receipt.duration_seconds.is_some_and(|d| !(0.0..1e9).contains(&d)) {
        return Err(ApiError::bad_request(
            "duration_seconds: must be a number from 0 to 1000000000",
        ));
    }
    let usage = receipt.usage.unwrap_or_default();
    let negative = [usage.input_tokens, usage.output_tokens].into_iter().flatten().any(|n| n < 0)
        || usage.cost_usd.is_some_and(|cost| !(0.0..1e9).contains(&cost));
    if negative {
        return Err(ApiError::bad_request("usage: its numbers must not be negative"));
    }
    Ok(receipt)
}
