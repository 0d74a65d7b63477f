//! Deliveries of the forge: verified over the raw bytes, parsed, taken once, answered after the commit.

use std::{sync::Arc, time::SystemTime};

use serde_json::json;
use warp::{Filter, filters::BoxedFilter, http::StatusCode, reply::Response};

use super::{
    Answer,
    call::{Call, LARGE_BODY, exempt_call},
    detached,
    error::ApiError,
    v1, with_status,
};
use crate::{
    coordinator::Replica,
    forge::{
        payload::{Content, Delivery, parse},
        rules::is_heard,
        signature::{SignatureError, verify},
    },
    model::IssueState,
    store::{DeliveryResult, IssueDefaults, IssueDelivery},
    telemetry::error_chain,
    traces::{Kind, Span},
};

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
    let issue = match content {
        Content::Issue(issue) if is_heard(&config.forgejo.repos, &issue.repo.full_name) => issue,
        Content::Issue(_) => {
            return ignore(&call.replica, delivery, "its repository is not in forgejo.repos").await;
        }
        Content::Ignored(reason) => return ignore(&call.replica, delivery, reason).await,
    };
    let taken = IssueDelivery {
        delivery_id: delivery.delivery_id,
        body_hash: delivery.body_hash,
        event: delivery.event_type,
        action: delivery.action,
        key: issue.key(),
        state: IssueState::from(*issue),
    };
    let mut span = Span::begin("webhook", Kind::Request, call.traceparent(), SystemTime::now());
    let defaults = IssueDefaults {
        timeout_secs: i32::try_from(config.tasks.timeout.as_secs()).unwrap_or(i32::MAX),
        max_retries: i32::try_from(config.tasks.max_retries).unwrap_or(i32::MAX),
        traceparent: span.traceparent(),
    };
    let taking = call.replica.store.take_issue(&taken, defaults).await;
    let outcome = taking.inspect_err(|_| span.fail())?;
    span.set("task.key", &taken.key);
    span.set("task.outcome", outcome.result.as_str());
    if let Some(task_id) = outcome.task_id {
        span.set("task.id", task_id);
    }
    span.end();
    crate::metrics::delivery(outcome.result.as_str());
    if outcome.wakes {
        call.replica.wake_ready();
        call.replica.wake_revoked();
    }
    tracing::info!(
        delivery.id = taken.delivery_id,
        task.key = taken.key,
        action = taken.action,
        result = outcome.result.as_str(),
        reason = outcome.reason,
        "webhook delivery"
    );
    let mut reply = json!({"delivery_id": taken.delivery_id, "result": outcome.result.as_str()});
    if let Some(task_id) = outcome.task_id {
        reply["task_id"] = json!(task_id);
    }
    if let Some(reason) = outcome.reason {
        reply["reason"] = json!(reason);
    }
    with_status(StatusCode::ACCEPTED, &reply)
}

async fn ignore(replica: &Replica, delivery: Delivery, reason: &'static str) -> Answer {
    let first = replica
        .store
        .take_other(
            &delivery.delivery_id,
            delivery.body_hash,
            &delivery.event_type,
            &delivery.action,
        )
        .await?;
    let result = if first { DeliveryResult::Ignored } else { DeliveryResult::Duplicate };
    crate::metrics::delivery(result.as_str());
    let reply =
        json!({"delivery_id": delivery.delivery_id, "result": result.as_str(), "reason": reason});
    with_status(StatusCode::ACCEPTED, &reply)
}
