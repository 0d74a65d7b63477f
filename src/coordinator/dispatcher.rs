//! The dispatcher: how a task is executed is decided here, or by the first dequeue, whichever commits first.
//!
//! **Phase 1**: for host agents that this replica reaches and that have free slots, tasks are claimed and run on them.
//! **Phase 2**: what has waited undecided for longer than the grace, and no known host could ever serve, becomes
//! `http_pull`. Both run on every replica at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Replica, pause_after, runner};
use crate::{store::StoreError, telemetry::error_chain};

/// Claims in one cycle, at most, before phase 2 has its turn.
const ROUNDS: u32 = 10;
/// Between two cycles at least, so that a burst of hints is one cycle.
const PAUSE: Duration = Duration::from_millis(5);

/// The loop: phase 1 when woken and at least every `dispatch.interval`, phase 2 as often unless it is dear.
pub(super) async fn run(replica: &Arc<Replica>) {
    let mut decide_at = Instant::now();
    while !replica.shutdown.is_draining() {
        let interval = replica.config.dispatch.interval.mul_f64(rand::random_range(0.8..1.0));
        let mut done = claim(replica).await;
        // Phase 2 looks at what has waited for long, which no hint changes: it goes by the timer alone.
        if done.is_ok() && decide_at <= Instant::now() {
            let begun = Instant::now();
            done = decide(replica).await;
            decide_at = Instant::now() + pause_after(begun.elapsed(), interval);
        }
        if let Err(error) = done {
            tracing::warn!(error = %error_chain(&error), "the dispatcher could not finish its cycle");
        }
        tokio::select! {
            () = replica.shutdown.draining() => return,
            () = replica.wake.dispatcher() => {}
            () = tokio::time::sleep(interval) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Phase 1.
async fn claim(replica: &Arc<Replica>) -> Result<(), StoreError> {
    let actor = replica.actor();
    for _ in 0..ROUNDS {
        let reachable = replica.hosts.reachable();
        let begun = Instant::now();
        let (claims, more) =
            replica.store.claim_for_hosts(&reachable, replica.session(), &actor).await?;
        if !claims.is_empty() {
            crate::metrics::claim("ssh_cli", claims.len(), begun.elapsed());
        }
        for claim in claims {
            runner::spawn(replica, claim);
        }
        if !more || replica.shutdown.is_draining() {
            break;
        }
    }
    Ok(())
}

/// Phase 2.
async fn decide(replica: &Replica) -> Result<(), StoreError> {
    let grace = replica.config.dispatch.undecided_grace;
    let decided = replica.store.decide_pull(grace, &replica.actor()).await?;
    if decided > 0 {
        tracing::info!(
            tasks = decided,
            "no known host could ever serve these tasks; they are left to pull"
        );
        replica.wake_ready();
    }
    Ok(())
}
