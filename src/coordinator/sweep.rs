//! What is left over on a host: runs whose task was called off or finished elsewhere while nobody could reach them, or
//! whose replica died right after. The probe finds them; here they are ended, verified, and shrink to tombstones.

use std::time::Duration;

use futures_util::StreamExt;

use super::{Replica, runner::KILL_GRACE};
use crate::{
    config,
    execution::{Executor, Killed, RunDir, RunError, kill, tombstone},
    model::{Lease, TaskId},
    store::StoreError,
    telemetry::error_chain,
};

/// Ended at once, at most; the next probe finds the rest.
const BATCH: usize = 32;
/// Of these, side by side.
const ABREAST: usize = 4;
/// A probe is not held up for longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Ends those of the runs found on a host that nobody has any more. Whatever goes wrong is tried again by the next probe.
pub(super) async fn sweep(
    replica: &Replica,
    host: &config::Host,
    executor: &dyn Executor,
    found: &[(TaskId, Lease)],
) {
    // What is still being settled here clears up after itself.
    let found: Vec<(TaskId, Lease)> =
        found.iter().filter(|(task, _)| !replica.in_hand.has_task(*task)).copied().collect();
    if found.is_empty() {
        return;
    }
    let ending = async {
        let ended = replica.store.list_ended_runs(&found).await?;
        let ends = ended.into_iter().take(BATCH).map(|(task_id, run_lease)| async move {
            let run = RunDir {
                work_dir: host.work_dir.clone(),
                fleet_id: replica.fleet_id,
                task_id,
                run_lease,
            };
            match end(executor, &run).await {
                Ok(Killed::StillAlive) => {
                    tracing::error!(task.id = %task_id, host.id = host.host_id, "the processes of a run that nobody has any more survive KILL");
                }
                Ok(_) => {
                    tracing::info!(task.id = %task_id, run.lease = run_lease.0, host.id = host.host_id, "a run that nobody had any more was cleared up");
                }
                Err(error) => {
                    tracing::warn!(task.id = %task_id, host.id = host.host_id, error = %error_chain(&error), "a run that nobody has any more could not be cleared up yet");
                }
            }
        });
        futures_util::stream::iter(ends).buffer_unordered(ABREAST).collect::<()>().await;
        Ok::<(), StoreError>(())
    };
    match tokio::time::timeout(LIMIT, ending).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(host.id = host.host_id, error = %error_chain(&error), "no look for leftover runs was possible");
        }
        Err(_) => {
            tracing::warn!(host.id = host.host_id, "leftover runs were not all ended in time");
        }
    }
}

async fn end(executor: &dyn Executor, run: &RunDir) -> Result<Killed, RunError> {
    let killed = kill(executor, run, KILL_GRACE).await?;
    if killed != Killed::StillAlive {
        tombstone(executor, run).await?;
    }
    Ok(killed)
}
