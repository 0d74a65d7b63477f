//! What the coordinator has to hear of an attempt: that it began, and how it ended. Said until it is acknowledged.

use std::{sync::Arc, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    claims::{Held, Stop},
    session::{CallError, Session},
};
use crate::{model::Receipt, telemetry::error_chain};

/// How long the end of an attempt is reported once the agent itself is to end.
const LAST_TRIES: Duration = Duration::from_secs(30);

/// Reports `running`. False when the task is not this agent's any more, or the agent is to end.
pub(super) async fn report_running(session: &Session, held: &Arc<Held>) -> bool {
    let stopped = async {
        held.stopped().await;
    };
    let told = session
        .insist::<Value>(stopped, |client| {
            let body = body(session, held, json!({"status": "running"}));
            client.request(Method::POST, &path(held, "status")).json(&body)
        })
        .await;
    match told {
        Ok(_) => true,
        Err(CallError::GivenUp | CallError::Refused(_)) => false,
        // Its pull request may already wait for review; the lease holds until the receipt.
        Err(CallError::Client(error)) if held.is_resumed && error.status() == Some(400) => true,
        Err(CallError::Client(error)) => {
            session.lose(held, &format!("`running` was answered with: {error}"));
            false
        }
    }
}

/// Sends the receipt. True when the claim is settled: acknowledged, or refused for good.
pub(super) async fn send_receipt(session: &Session, held: &Arc<Held>, receipt: &Receipt) -> bool {
    let receipt = serde_json::to_value(receipt).unwrap_or_default();
    settle(session, held, "complete", receipt).await
}

/// Gives the task back, the attempt refunded. True when the claim is settled.
pub(super) async fn release(
    session: &Session,
    held: &Arc<Held>,
    reason: &str,
    retry_after: Option<Duration>,
) -> bool {
    let retry_after_secs = retry_after.map(|d| d.as_secs());
    let fields = json!({"reason": reason, "retry_after_secs": retry_after_secs});
    settle(session, held, "release", fields).await
}

async fn settle(session: &Session, held: &Arc<Held>, act: &str, fields: Value) -> bool {
    let limit = async {
        if held.stopped().await == Stop::Release {
            tokio::time::sleep(LAST_TRIES).await;
        }
    };
    let answer = session
        .insist::<Value>(limit, |client| {
            client.request(Method::POST, &path(held, act)).json(&body(
                session,
                held,
                fields.clone(),
            ))
        })
        .await;
    let task = held.task_id();
    match answer {
        Ok(_) => {
            tracing::info!(task.id = %task, lease = %held.lease(), act, "settled");
            true
        }
        // Lost meanwhile: nobody waits for it.
        Err(CallError::GivenUp) => held.stop_reason() == Some(Stop::Lost),
        Err(CallError::Refused(_)) => false,
        Err(CallError::Client(error)) => {
            tracing::warn!(task.id = %task, lease = %held.lease(), act, error = error_chain(&error), "not accepted");
            true
        }
    }
}

fn path(held: &Held, act: &str) -> String {
    format!("/api/v1/tasks/{}/{act}", held.task_id())
}

/// The fields, with who says it under which lease.
fn body(session: &Session, held: &Held, mut fields: Value) -> Value {
    fields["agent_id"] = json!(session.options.agent_id);
    fields["lease"] = json!(held.lease());
    fields
}
