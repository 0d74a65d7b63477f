//! Receipts: what an attempt produced. One of them ends the lease; the same one again changes nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{Call, LARGE_BODY, body_task_ref, call, from_value},
    current, detached_handing,
    error::ApiError,
    full, ok,
    tasks::resolve,
    v1,
    work::claim_id,
};
use crate::{
    coordinator::{Handed, Replica, settle},
    model::{Actor, Artifact, Lease, Receipt, ReceiptStatus, SessionId, Task, check_text},
    store::{EndLease, Ended, HeldLease, Outcome, Waiter},
};

/// Bytes of a summary, an error, an address.
const MAX_SUMMARY: usize = 64 << 10;
const MAX_ADDRESS: usize = 4_000;
/// Receipts in one array.
const MAX_RECEIPTS: usize = 100;
/// Artifacts of one receipt.
const MAX_ARTIFACTS: usize = 100;

/// `POST /api/v1/tasks/{id}/complete`, `POST /api/v1/receipts`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let by_task = v1()
        .and(warp::path!("tasks" / String / "complete"))
        .and(warp::post())
        .and(call(replica, LARGE_BODY))
        .then(|id: String, call| detached_handing(complete(call, Some(id))));
    let alone = v1()
        .and(warp::path!("receipts"))
        .and(warp::post())
        .and(call(replica, LARGE_BODY))
        .then(|call| detached_handing(by_body(call)));
    by_task.or(alone).unify().boxed()
}

/// Where a receipt belongs; the rest of the body is the receipt itself.
#[derive(Debug, Deserialize)]
struct Address {
    agent_id: String,
    task_id: Option<String>,
    lease: Option<i64>,
}

/// What `complete?dequeue=true` answers.
#[derive(Serialize)]
struct Completed {
    task: Task,
    next: Option<Task>,
}

/// Reads a receipt, and whose it is.
fn read(value: Value) -> Result<(Address, Receipt), ApiError> {
    let address = match &value {
        Value::Object(all) => {
            let named = ["agent_id", "task_id", "lease"]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), all.get(name)?.clone())));
            Value::Object(named.collect())
        }
        other => other.clone(),
    };
    Ok((from_value(address)?, read_receipt(value)?))
}

async fn complete(
    call: Call,
    path: Option<String>,
) -> Result<(Response, Option<Handed>), ApiError> {
    call.principal().await?;
    let dequeue = match call.query("dequeue")?.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => {
            return Err(ApiError::bad_request("the parameter dequeue must be `true` or `false`"));
        }
    };
    let (address, receipt) = read(call.json_value()?)?;
    let end = end(&call, path, address, receipt).await?;
    let held = end.held;
    let next = (dequeue && !call.replica.shutdown.is_draining()).then(|| Waiter {
        // The same receipt again is answered with the same task.
        claim_id: claim_id("complete", &format!("{}:{}", held.task_id, held.lease)),
        repeatable: true,
        ..Waiter::one(held.holder)
    });
    let mut settled = settle(&call.replica, vec![end], next).await?;
    let task = match (settled.ended.pop(), settled.tasks.pop().flatten()) {
        (Some(Ended::Now(_) | Ended::Before), Some(task)) => full(task),
        // Who has lost this task takes no other in the same breath: what was claimed goes back.
        (Some(Ended::Not(refusal)), _) => return Err(refusal.into()),
        _ => return Err(ApiError::internal()),
    };
    if !dequeue {
        return Ok((ok(&task)?, None));
    }
    let next = settled.next.as_mut().and_then(|handed| handed.take_tasks().pop()).map(full);
    Ok((ok(&Completed { task, next })?, settled.next))
}

async fn by_body(call: Call) -> Result<(Response, Option<Handed>), ApiError> {
    call.principal().await?;
    match call.json_value()? {
        Value::Array(items) => Ok((many(&call, items).await?, None)),
        _ => complete(call, None).await,
    }
}

/// An array: each receipt is judged on its own, and all are committed together. What names a task that stands before it
/// in the array is judged after that one.
async fn many(call: &Call, items: Vec<Value>) -> Answer {
    if items.is_empty() || items.len() > MAX_RECEIPTS {
        return Err(ApiError::bad_request(format!(
            "an array of receipts must have 1 to {MAX_RECEIPTS} items, this one has {}",
            items.len()
        )));
    }
    let mut results: Vec<Value> = Vec::with_capacity(items.len());
    let mut rounds: Vec<Vec<(usize, EndLease)>> = Vec::new();
    for (place, item) in items.into_iter().enumerate() {
        // As it was sent, so that a program finds its receipt again; what is no text is no name.
        let name = item.get("task_id").filter(|name| name.is_string()).cloned();
        let end = match read(item) {
            Ok((address, receipt)) => end(call, None, address, receipt).await,
            Err(error) => Err(error),
        };
        results.push(json!({"task_id": name}));
        match end {
            Ok(end) => {
                let task = end.held.task_id;
                let names = |round: &Vec<(usize, EndLease)>| {
                    round.iter().any(|(_, other)| other.held.task_id == task)
                };
                let round = rounds.iter().take_while(|round| names(round)).count();
                if round == rounds.len() {
                    rounds.push(Vec::new());
                }
                rounds[round].push((place, end));
            }
            Err(error) => fail(&mut results[place], &error),
        }
    }
    for round in rounds {
        let (places, ends): (Vec<usize>, Vec<EndLease>) = round.into_iter().unzip();
        let settled = settle(&call.replica, ends, None).await?;
        for ((place, ended), task) in places.into_iter().zip(settled.ended).zip(settled.tasks) {
            match (ended, task) {
                (Ended::Now(_) | Ended::Before, Some(task)) => {
                    results[place]["status"] = json!(task.status);
                }
                (Ended::Not(refusal), _) => fail(&mut results[place], &refusal.into()),
                _ => fail(&mut results[place], &ApiError::internal()),
            }
        }
    }
    ok(&json!({"results": results}))
}

fn fail(result: &mut Value, error: &ApiError) {
    for (name, value) in error.body().as_object().into_iter().flatten() {
        result[name] = value.clone();
    }
}

/// The end of the lease that a receipt is about.
async fn end(
    call: &Call,
    path: Option<String>,
    address: Address,
    receipt: Receipt,
) -> Result<EndLease, ApiError> {
    let agent = call.agent(&address.agent_id).await?;
    let id = match (&path, &address.task_id) {
        (Some(path), body) => {
            let id = resolve(call, path).await?;
            if let Some(body) = body
                && call.replica.store.resolve(&body_task_ref(body)?).await? != Some(id)
            {
                return Err(ApiError::bad_request("task_id: names another task than the address"));
            }
            id
        }
        (None, Some(body)) => {
            let id = call.replica.store.resolve(&body_task_ref(body)?).await?;
            id.ok_or_else(|| ApiError::not_found("there is no such task"))?
        }
        (None, None) => return Err(ApiError::bad_request("missing field `task_id`")),
    };
    let lease = match address.lease {
        Some(lease) => Lease(lease),
        None => only_lease(call, id, &address.agent_id).await?,
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
    Ok(EndLease {
        held: HeldLease { task_id: id, lease, holder },
        outcome,
        reason,
        wait_secs: None,
        receipt: Some(receipt),
        actor: Actor::Agent(address.agent_id),
    })
}

/// The lease may be left out only while the agent has been given this task exactly once.
async fn only_lease(
    call: &Call,
    id: crate::model::TaskId,
    agent_id: &str,
) -> Result<Lease, ApiError> {
    let agent = Actor::Agent(agent_id.to_owned());
    match call.replica.store.find_claims(id, &agent).await?.as_slice() {
        [lease] => Ok(*lease),
        [] => {
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
