//! Deliveries of the forge: verified over the raw bytes, parsed, taken once, answered after the commit.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use warp::{Filter, filters::BoxedFilter, http::StatusCode, reply::Response};

use super::{
    Answer,
    call::{Call, LARGE_BODY, exempt_call},
    detached,
    error::ApiError,
    v1, with_status,
};
use crate::{
    coordinator::{Replica, deliver},
    forge::{
        payload::{Content, parse},
        rules::is_heard,
        signature::{SignatureError, verify},
    },
    model::{IssueState, TaskId},
    store::{About, Delivery, IssueDefaults},
    telemetry::error_chain,
    traces::{Kind, Span},
};

/// A forge waits five seconds, unless told otherwise (`webhook.DELIVER_TIMEOUT` of Forgejo).
const ANSWER: Duration = Duration::from_secs(4);

/// `/api/v1/webhooks/forgejo`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    v1().and(warp::path!("webhooks" / "forgejo"))
        .and(warp::post())
        .and(exempt_call(replica, LARGE_BODY))
        .then(|call: Call| detached(take(call)))
        .boxed()
}

async fn take(call: Call) -> Answer {
    let config = &call.replica.config;
    let body = call.json_bytes()?;
    let header = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok());
    if let Err(refused) = verify(header, body, &config.forgejo.webhook_secret) {
        tracing::warn!(
            delivery.id = header("x-forgejo-delivery").unwrap_or_default(),
            bytes = body.len(),
            reason = %refused,
            "a webhook delivery was refused"
        );
        return Err(match refused {
            SignatureError::NotConfigured => ApiError::webhook(
                "webhook_not_configured",
                "no webhook secret is configured here; set forgejo.webhook_secret",
            ),
            _ => ApiError::webhook(
                "bad_signature",
                "the delivery's signature is missing or wrong; the secret must be the same on both sides",
            ),
        });
    }
    let (delivery, content) = parse(header, body).map_err(|error| {
        ApiError::bad_request(format!("the delivery cannot be read: {}", error_chain(&error)))
    })?;
    let span = Span::begin("webhook", Kind::Request, call.traceparent(), SystemTime::now());
    let about = match content {
        Content::Issue(issue) if is_heard(&config.forgejo.repos, &issue.repo.full_name) => {
            let defaults = IssueDefaults {
                timeout_secs: i32::try_from(config.tasks.timeout.as_secs()).unwrap_or(i32::MAX),
                max_retries: i32::try_from(config.tasks.max_retries).unwrap_or(i32::MAX),
                traceparent: span.traceparent(),
            };
            let key = issue.key();
            About::Issue { key, state: Box::new(IssueState::from(*issue)), defaults }
        }
        Content::Issue(_) => About::Nothing("its repository is not in forgejo.repos"),
        Content::Ignored(reason) => About::Nothing(reason),
    };
    let delivery = Arc::new(Delivery {
        delivery_id: delivery.delivery_id,
        body_hash: delivery.body_hash,
        event: delivery.event_type,
        action: delivery.action,
        about,
    });
    // On its own, so that it goes on when the forge has waited long enough.
    let taking = tokio::spawn(finish(Arc::clone(&call.replica), delivery, span));
    match tokio::time::timeout(ANSWER, taking).await {
        Ok(taken) => taken.unwrap_or_else(|_| Err(ApiError::internal())),
        Err(_) => Err(ApiError::unavailable(
            "the database is away; the delivery is kept for a minute and taken when it is back",
        )),
    }
}

async fn finish(replica: Arc<Replica>, delivery: Arc<Delivery>, mut span: Span) -> Answer {
    let outcome = match deliver(&replica, &delivery).await {
        Ok(outcome) => outcome,
        Err(error) => {
            span.fail();
            // That has been logged, with what to do about it.
            let away = error.is_unavailable();
            return Err(if away { ApiError::database_away() } else { error.into() });
        }
    };
    crate::metrics::delivery(outcome.result.as_str());
    if let About::Issue { key, .. } = &delivery.about {
        span.set("task.key", key);
        span.set("task.outcome", outcome.result.as_str());
        if let Some(task_id) = outcome.task_id {
            span.set("task.id", task_id);
        }
        span.end();
        tracing::info!(
            delivery.id = delivery.delivery_id,
            task.key = key,
            action = delivery.action,
            result = outcome.result.as_str(),
            reason = outcome.reason,
            "webhook delivery"
        );
    }
    let taken = Taken {
        delivery_id: &delivery.delivery_id,
        result: outcome.result.as_str(),
        task_id: outcome.task_id,
        reason: outcome.reason,
    };
    with_status(StatusCode::ACCEPTED, &taken)
}

/// What the forge is answered.
#[derive(Serialize)]
struct Taken<'a> {
    delivery_id: &'a str,
    result: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}
