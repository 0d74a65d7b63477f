//! The loop that asks for work: one long-polling dequeue while a slot is free.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use reqwest::Method;
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};
use uuid::Uuid;

use super::{
    backoff::Backoff,
    claims::{Claim, Held},
    run::attempt,
    session::{CallError, Refused, Session},
};
use crate::{model::Task, shutdown::Shutdown, telemetry::error_chain};

/// How long the coordinator may hold a dequeue; its limit is 50.
const WAIT_SECS: u64 = 50;
/// Its answer should be here by then.
const TIMEOUT: Duration = Duration::from_secs(WAIT_SECS + 20);

/// Dequeues, and starts attempts in the background, until asked to stop.
pub(super) async fn pull(
    session: &Arc<Session>,
    slots: &Arc<Semaphore>,
    attempts: &mut JoinSet<()>,
    stop: &Shutdown,
) -> Result<(), Refused> {
    loop {
        let slot = tokio::select! {
            () = stop.triggered() => return Ok(()),
            slot = Arc::clone(slots).acquire_owned() => slot,
        };
        // The semaphore is never closed.
        let Ok(slot) = slot else { return Ok(()) };
        // A connection cut here leaves no task leased: the coordinator takes an unwritten answer back, and what it
        // wrote goes back by deregistering.
        let task = tokio::select! {
            () = stop.triggered() => return Ok(()),
            task = async {
                session.parking.over().await;
                next_task(session).await
            } => task?,
        };
        let claim = Claim { run_lease: task.lease, task, claimed_at: Timestamp::now() };
        tracing::info!(
            task.id = %claim.task.task_id, task.key = %claim.task.key, lease = %claim.run_lease, "claimed"
        );
        if let Err(error) = session.dir.save_claim(&claim) {
            // The attempt itself does not need it; only a restart would lose sight of the run.
            tracing::error!(error = error_chain(&error), "the claim cannot be kept on disk");
        }
        let held = Held::new(claim);
        for older in session.claims.insert(&held) {
            session.lose(&older, "it was called off, and handed out anew");
        }
        let session = Arc::clone(session);
        // Those that have ended need no place there.
        while attempts.try_join_next().is_some() {}
        attempts.spawn(async move {
            attempt(&session, &held).await;
            drop(slot);
        });
    }
}

/// Asks until there is a task.
async fn next_task(session: &Session) -> Result<Task, Refused> {
    let mut backoff = Backoff::default();
    // Kept until it is answered: the same id gets the same task, should an answer be lost on its way.
    let mut request_id = Uuid::now_v7();
    loop {
        let body = json!({
            "agent_id": session.options.agent_id, "wait_secs": WAIT_SECS, "request_id": request_id.to_string(),
        });
        let dequeue = |client: &crate::cli::client::Client| {
            client.request(Method::POST, "/api/v1/tasks/dequeue").timeout(TIMEOUT).json(&body)
        };
        match session.call(dequeue).await {
            Ok(Some(task)) => return Ok(task),
            Ok(None) => {
                backoff = Backoff::default();
                request_id = Uuid::now_v7();
            }
            Err(CallError::Refused(refused)) => return Err(refused),
            Err(error) => {
                if error.status().is_some_and(|s| s < 500) {
                    request_id = Uuid::now_v7();
                }
                tracing::warn!(error = error_chain(&error), "cannot dequeue; will try again");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}
