//! The janitor: partitions ahead of time, and what nobody needs any more.

use std::time::Duration;

use super::Replica;
use crate::{store::StoreError, telemetry::error_chain};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(3600);
/// How far ahead there are partitions: 60 days and a week, so that 60 days are always whole.
const AHEAD: Duration = Duration::from_secs(67 * 86_400);

/// The loop; its first round is at the start.
pub(super) async fn run(replica: &Replica) {
    loop {
        if let Err(error) = round(replica).await {
            tracing::warn!(error = %error_chain(&error), "the janitor could not finish its round");
        }
        if replica.shutdown.sleep(PERIOD.mul_f64(rand::random_range(0.8..1.2))).await {
            return;
        }
    }
}

async fn round(replica: &Replica) -> Result<(), StoreError> {
    let made = replica.store.make_partitions(AHEAD).await?;
    if made > 0 {
        tracing::info!(made, "partitions were made for the weeks ahead");
    }
    let store = &replica.store;
    store.delete_old_notices().await?;
    let (retired, dropped) = (store.retire_lanes().await?, store.delete_retired_lanes().await?);
    if retired > 0 || dropped > 0 {
        tracing::info!(
            retired,
            dropped,
            "lanes that nothing has referred to for a day were retired or dropped"
        );
    }
    Ok(())
}
