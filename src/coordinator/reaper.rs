//! The reaper: sessions that fell silent end, and with them, in bounded batches, their leases; so do leases past their
//! deadline. It judges nobody before it can see, see `sql/end_silent_sessions.sql`.

use std::time::Duration;

use super::Replica;
use crate::{
    model::Actor,
    store::{EndLease, HeldLease, Outcome, StoreError},
    telemetry::error_chain,
};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(1);
/// Rows in one batch.
const BATCH: i64 = 200;
/// A run on a host is judged by its follower; only so long after its deadline by the reaper.
pub(super) const HOST_GRACE: Duration = Duration::from_secs(60);

/// The loop.
pub(super) async fn run(replica: &Replica) {
    while !replica.shutdown.sleep(PERIOD.mul_f64(rand::random_range(0.8..1.2))).await {
        if let Err(error) = round(replica).await {
            tracing::warn!(error = %error_chain(&error), "the reaper could not finish its round");
        }
    }
}

/// One round; also what a test calls.
pub(super) async fn round(replica: &Replica) -> Result<(), StoreError> {
    for silent in replica.store.end_silent_sessions(replica.session(), BATCH).await? {
        tracing::warn!(
            session.id = %silent.session_id,
            kind = silent.kind,
            subject = silent.subject,
            "a session fell silent and was ended; its tasks go back to the queue"
        );
    }
    loop {
        let lost = replica.store.list_lost_leases(BATCH).await?;
        let more = i64::try_from(lost.len()).unwrap_or(BATCH) >= BATCH;
        let ends = lost
            .into_iter()
            .map(|(held, reason)| {
                let reason = format!("its agent's session ended: {}", reason.unwrap_or_default());
                end(replica, held, Outcome::Lost, reason)
            })
            .collect();
        settle(replica, ends).await?;
        if !more {
            break;
        }
    }
    let expired = replica.store.list_expired_leases(HOST_GRACE, BATCH).await?;
    let ends = expired
        .into_iter()
        .map(|held| end(replica, held, Outcome::TimedOut, "its deadline passed".to_owned()))
        .collect();
    settle(replica, ends).await
}

fn end(replica: &Replica, held: HeldLease, outcome: Outcome, reason: String) -> EndLease {
    EndLease {
        held,
        outcome,
        reason: Some(reason),
        wait_secs: None,
        receipt: None,
        actor: Actor::Replica(replica.config.server.replica_id.clone()),
    }
}

async fn settle(replica: &Replica, ends: Vec<EndLease>) -> Result<(), StoreError> {
    if ends.is_empty() {
        return Ok(());
    }
    let ended = replica.store.end_leases(&ends, replica.config.tasks.retry_backoff).await?;
    for (end, ended) in ends.iter().zip(ended) {
        tracing::warn!(
            task.id = %end.held.task_id,
            lease = end.held.lease.0,
            reason = end.reason,
            outcome = ?ended,
            "a lease was ended by the reaper"
        );
    }
    replica.wake_ready();
    replica.wake_revoked();
    Ok(())
}
