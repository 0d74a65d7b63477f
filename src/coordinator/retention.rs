//! Retention: what ended longer ago than `tasks.retention` is forgotten, in bounded batches.

use std::time::Duration;

use uuid::Uuid;

use super::Replica;
use crate::{model::TaskId, store::StoreError, telemetry::error_chain};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(3600);
/// After a round that left something, because somebody was in its way.
const SOON: Duration = Duration::from_secs(60);
/// Between two batches, so that a large backlog does not take the database for itself.
const PAUSE: Duration = Duration::from_millis(50);

/// The loop; its first round is at the start.
pub(super) async fn run(replica: &Replica) {
    loop {
        let pause = match round(replica).await {
            Ok(true) => PERIOD,
            Ok(false) => SOON,
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the retention could not finish its round");
                SOON
            }
        };
        if replica.shutdown.sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await {
            return;
        }
    }
}

/// True when nothing was left.
async fn round(replica: &Replica) -> Result<bool, StoreError> {
    let (store, retention) = (&replica.store, replica.config.tasks.retention);
    let (mut place, mut purged) = (TaskId(Uuid::nil()), 0);
    loop {
        let step = store.purge_tasks(retention, place).await?;
        purged += step.purged;
        match step.last {
            Some(last) => place = last,
            None => break,
        }
        if replica.shutdown.sleep(PAUSE).await {
            return Ok(true);
        }
    }
    while store.delete_old_rows(retention).await? {
        if replica.shutdown.sleep(PAUSE).await {
            return Ok(true);
        }
    }
    let partitions = store.drop_old_partitions(retention).await?;
    if purged > 0 || !partitions.dropped.is_empty() {
        tracing::info!(
            tasks = purged,
            partitions = partitions.dropped.join(" "),
            "what ended long ago was forgotten"
        );
    }
    Ok(partitions.left.is_empty())
}
