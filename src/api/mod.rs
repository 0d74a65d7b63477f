//! The HTTP API: the only place that knows warp. Routes by noun; handlers parse and answer, the store does.
//!
//! Rejections are for routing only: after path and method a handler returns `Result<_, ApiError>`, which
//! [`error`] turns into HTTP. Handlers run in a task of their own, so that a client that hangs up neither cancels a write half
//! way nor leaves a query running on a connection that the next caller is given. Only those that wait for something end with
//! their client.

mod agents;
mod call;
mod docs;
mod edge;
mod error;
mod events;
mod health;
mod hosts;
mod limits;
mod logs;
mod metrics;
mod principal;
mod queues;
mod receipts;
mod stats;
mod streams;
mod task_body;
mod tasks;
mod webhook;
mod work;

use std::{convert::Infallible, sync::Arc};

use futures_util::FutureExt as _;
use serde::Serialize;
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    http::{HeaderValue, StatusCode, header},
    reply::{Reply, Response},
};

pub use self::edge::{bind, serve};
use self::error::ApiError;
use crate::{
    coordinator::{Handed, Replica},
    model::Task,
};

/// What a handler returns.
type Answer = Result<Response, ApiError>;

/// Every route; whatever goes wrong is answered in JSON.
pub fn routes(
    replica: &Arc<Replica>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static + use<>
{
    // What is called most comes first.
    receipts::routes(replica)
        .or(work::routes(replica))
        .unify()
        .or(tasks::routes(replica))
        .unify()
        .or(health::routes(replica))
        .unify()
        .or(logs::routes(replica))
        .unify()
        .or(agents::routes(replica))
        .unify()
        .or(hosts::routes(replica))
        .unify()
        .or(events::routes(replica))
        .unify()
        .or(queues::routes(replica))
        .unify()
        .or(stats::routes(replica))
        .unify()
        .or(streams::routes(replica))
        .unify()
        .or(docs::routes())
        .unify()
        .or(webhook::routes(replica))
        .unify()
        .or(metrics::routes(replica))
        .unify()
        .boxed()
        .recover(recover)
        .unify()
        .with(warp::filters::log::custom(log))
        .map(Reply::into_response)
}

/// What no route took.
async fn recover(rejection: Rejection) -> Result<Response, Infallible> {
    // One address under another method rejects with 405; any other route with 404, which says less.
    let error = if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        ApiError::method_not_allowed()
    } else if rejection.is_not_found() {
        ApiError::not_found("there is nothing at this address; see docs/api.md")
    } else {
        ApiError::bad_request("the request could not be read")
    };
    Ok(error.into_response())
}

fn log(info: warp::filters::log::Info<'_>) {
    crate::metrics::request(info.method().as_str(), info.status().as_u16());
    tracing::debug!(
        http.method = %info.method(),
        http.path = info.path(),
        http.status = info.status().as_u16(),
        duration_ms = info.elapsed().as_millis(),
        "request"
    );
}

/// Renders what a handler returned.
fn render(answer: Answer) -> Response {
    answer.unwrap_or_else(Reply::into_response)
}

/// Runs a handler in a task of its own: once begun it is carried out, whether or not the client waits for it. On the heap
/// from the start, because handlers are large, and what is returned here is moved by every filter around it.
fn in_own_task<T: Send + 'static>(
    handler: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> impl Future<Output = Result<T, ApiError>> + Send {
    let handler = Box::pin(handler);
    // A panic itself has been logged.
    async move { tokio::spawn(handler).await.unwrap_or_else(|_| Err(ApiError::internal())) }
}

/// Answers with what a handler in a task of its own returns.
fn detached(
    handler: impl Future<Output = Answer> + Send + 'static,
) -> impl Future<Output = Response> + Send {
    in_own_task(handler).map(render)
}

/// The same for a handler that hands tasks out: what it answers to a client who has hung up goes back to the queue.
fn detached_handing(
    handler: impl Future<Output = Result<(Response, Option<Handed>), ApiError>> + Send + 'static,
) -> impl Future<Output = Response> + Send {
    in_own_task(handler).map(|answered| {
        render(answered.map(|(response, handed)| {
            if let Some(handed) = handed {
                handed.delivered();
            }
            response
        }))
    })
}

/// 200 with JSON.
fn ok(body: &impl Serialize) -> Answer {
    with_status(StatusCode::OK, body)
}

/// JSON under another status.
fn with_status(status: StatusCode, body: &impl Serialize) -> Answer {
    // Most bodies are a task or two: one piece of memory, without a tree of values in between.
    let mut json = Vec::with_capacity(4 << 10);
    serde_json::to_writer(&mut json, body).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        ApiError::internal()
    })?;
    let mut response = Response::new(json.into());
    *response.status_mut() = status;
    let is_json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, is_json);
    Ok(response)
}

#[derive(Serialize)]
struct Page<'a, T> {
    items: &'a [T],
    next_cursor: Option<String>,
}

/// A page of a list; there is a next one when this one is full.
fn page<T: Serialize>(items: &[T], limit: i64, cursor: impl Fn(&T) -> String) -> Answer {
    let full = i64::try_from(items.len()).unwrap_or(i64::MAX) >= limit;
    let next_cursor = items.last().filter(|_| full).map(cursor);
    ok(&Page { items, next_cursor })
}

/// A task in full, with the prompt that a CLI is given.
fn full(mut task: Task) -> Task {
    task.prompt = Some(crate::execution::prompt(&task));
    task
}

/// The task as it is now.
async fn current(replica: &Replica, id: crate::model::TaskId) -> Result<Task, ApiError> {
    let task = replica.store.get_task(id).await?;
    task.map(full).ok_or_else(|| ApiError::not_found("there is no such task"))
}

/// `/api/v1`
fn v1() -> BoxedFilter<()> {
    warp::path("api").and(warp::path("v1")).boxed()
}
