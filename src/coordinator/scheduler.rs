//! The scheduler: what is due. Tasks whose time has come become ready, reservations that ran out are freed, leases past their
//! deadline end, tasks that came by SQL get their lanes. It sleeps until the next of these, and looks now and then in case
//! something came that nobody told it of.

use std::time::Duration;

use super::{Replica, reaper};
use crate::{
    model::TaskId,
    store::{BATCH, StoreError},
    telemetry::error_chain,
};

/// Looks at least so often: how late may be what another replica scheduled and did not live to see, or what came by SQL.
const FLOOR: Duration = Duration::from_secs(2);
/// Between two looks at least, so that a burst of hints is one look.
const PAUSE: Duration = Duration::from_millis(50);

/// The loop.
pub(super) async fn run(replica: &Replica) {
    let mut named = None;
    while !replica.shutdown.is_triggered() {
        let next = match round(replica, &mut named).await {
            Ok(next) => next.min(FLOOR.mul_f64(rand::random_range(0.8..1.2))),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the scheduler could not finish its round");
                FLOOR
            }
        };
        tokio::select! {
            () = replica.shutdown.triggered() => return,
            () = replica.wake.scheduler() => {}
            () = tokio::time::sleep(next) => {}
        }
        if replica.shutdown.sleep(PAUSE).await {
            return;
        }
    }
}

/// One look, and what it calls for. Returns in how long there will be more to do, as things stand.
async fn round(replica: &Replica, named: &mut Option<TaskId>) -> Result<Duration, StoreError> {
    let (store, actor) = (&replica.store, replica.actor());
    let due = store.read_due(reaper::HOST_GRACE).await?;
    let promoted = if due.scheduled { store.promote_due_tasks(&actor).await? } else { 0 };
    let freed = if due.pins { store.expire_pins(&actor).await? } else { 0 };
    let interned = if due.laneless { store.intern_laneless().await? } else { 0 };
    if promoted > 0 || freed > 0 || interned > 0 {
        tracing::debug!(promoted, freed, interned, "tasks became ready");
        replica.wake_ready();
    }
    let ended = if due.deadlines { reaper::end_expired(replica, named).await? } else { 0 };
    let is_full = promoted >= BATCH || freed >= BATCH || ended >= reaper::BATCH;
    Ok(if is_full { Duration::ZERO } else { due.next.unwrap_or(FLOOR) })
}
