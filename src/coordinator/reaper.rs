//! The reaper: sessions that fell silent end, and with them, in bounded batches, their leases; so do leases past their
//! deadline. It judges nobody before it can see, see `sql/end_silent_sessions.sql`.

use std::time::{Duration, Instant};

use super::{Replica, end_unlocked};
use crate::{
    model::{Actor, TaskId},
    store::{EndLease, HeldLease, Outcome, StoreError},
    telemetry::error_chain,
};

/// Looks at least so often: how late may be a lease whose session somebody else ended and did not live to clear up after.
const FLOOR: Duration = Duration::from_millis(2_500);
/// Looks at all that is held so often: what was lost while no replica could see it. Less than `sql/read_silence.sql` looks
/// back otherwise.
const IN_FULL: Duration = Duration::from_secs(60);
/// Between two looks at least.
const PAUSE: Duration = Duration::from_millis(250);
/// Rows in one batch.
pub(super) const BATCH: i64 = 200;
/// A run on a host is judged by its follower; only so long after its deadline by the reaper.
pub(super) const HOST_GRACE: Duration = Duration::from_secs(60);

/// The loop: sleeps until the next session would be silent.
pub(super) async fn run(replica: &Replica) {
    let mut next = PAUSE;
    let mut looked: Option<Instant> = None;
    let mut named = None;
    while !replica.shutdown.sleep(next).await {
        let floor = FLOOR.mul_f64(rand::random_range(0.8..1.2));
        let in_full = looked.is_none_or(|at| at.elapsed() >= IN_FULL);
        let now = Instant::now();
        next = match round(replica, in_full, &mut named).await {
            Ok(next) => {
                if in_full {
                    looked = Some(now);
                }
                next.unwrap_or(floor).clamp(PAUSE, floor)
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the reaper could not finish its round");
                floor
            }
        };
    }
}

/// One look, and what it calls for. Returns in how long the next session would be silent.
async fn round(
    replica: &Replica,
    in_full: bool,
    named: &mut Option<TaskId>,
) -> Result<Option<Duration>, StoreError> {
    let silence = replica.store.read_silence(in_full).await?;
    let mut lost = silence.lost;
    if silence.silent {
        let ended = replica.store.end_silent_sessions(replica.session(), BATCH).await?;
        for silent in &ended {
            tracing::warn!(
                session.id = %silent.session_id,
                kind = silent.kind,
                subject = silent.subject,
                "a session fell silent and was ended; its tasks go back to the queue"
            );
        }
        lost |= !ended.is_empty();
        if ended.iter().any(|silent| silent.kind == "replica") {
            replica.wake_orphaned();
        }
    }
    while lost {
        let leases = replica.store.list_lost_leases(BATCH).await?;
        let ends = leases
            .into_iter()
            .map(|(held, reason)| {
                let reason = format!("its agent's session ended: {}", reason.unwrap_or_default());
                end(replica, held, Outcome::Lost, reason)
            })
            .collect();
        lost = settle(replica, ends, named).await? >= BATCH;
    }
    Ok(silence.next)
}

/// Ends leases past their deadline, at most a batch. Returns how many it could.
pub(super) async fn end_expired(
    replica: &Replica,
    named: &mut Option<TaskId>,
) -> Result<i64, StoreError> {
    let expired = replica.store.list_expired_leases(HOST_GRACE, BATCH).await?;
    let ends = expired
        .into_iter()
        .map(|held| end(replica, held, Outcome::TimedOut, "its deadline passed".to_owned()))
        .collect();
    settle(replica, ends, named).await
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

/// Ends what a look found, and returns how many it could. What it did not find although it is there is locked by somebody:
/// one of them is `named` in the log, once.
async fn settle(
    replica: &Replica,
    ends: Vec<EndLease>,
    named: &mut Option<TaskId>,
) -> Result<i64, StoreError> {
    if ends.is_empty() {
        let locked = replica.store.find_overdue_lease(HOST_GRACE).await?;
        if let Some(task) = locked
            && *named != locked
        {
            tracing::warn!(task.id = %task, "somebody keeps this task locked, so its lease cannot end: look for an open transaction");
        }
        *named = locked;
        return Ok(0);
    }
    let ended = end_unlocked(replica, ends).await?;
    for (end, ended) in &ended {
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
    Ok(i64::try_from(ended.len()).unwrap_or(BATCH))
}
