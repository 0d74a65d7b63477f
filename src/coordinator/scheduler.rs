//! The scheduler: what is due becomes ready, reservations that ran out are freed, tasks that came by SQL get their lanes.

use std::time::Duration;

use super::Replica;
use crate::{store::StoreError, telemetry::error_chain};

/// Between two rounds: how late a due task may be.
const PERIOD: Duration = Duration::from_millis(500);

/// The loop.
pub(super) async fn run(replica: &Replica) {
    while !replica.shutdown.sleep(PERIOD.mul_f64(rand::random_range(0.8..1.2))).await {
        if let Err(error) = round(replica).await {
            tracing::warn!(error = %error_chain(&error), "the scheduler could not finish its round");
        }
    }
}

async fn round(replica: &Replica) -> Result<(), StoreError> {
    let actor = replica.actor();
    let promoted = replica.store.promote_due_tasks(&actor).await?;
    let freed = replica.store.expire_pins(&actor).await?;
    let interned = replica.store.intern_laneless().await?;
    if promoted > 0 || freed > 0 || interned > 0 {
        tracing::debug!(promoted, freed, interned, "tasks became ready");
        replica.wake_ready();
    }
    Ok(())
}
