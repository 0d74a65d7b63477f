//! How much there is of what, for metrics.

use super::{
    Store, StoreError,
    rows::{get, word},
    statement::{COUNT_TASKS, COUNT_WORKERS},
};
use crate::model::{CapabilitySet, ExecutionMode, Status};

/// Unended tasks of one lane in one mode and status.
#[derive(Debug)]
pub struct TaskCount {
    /// Where they stand.
    pub status: Status,
    /// How they are executed.
    pub execution_mode: ExecutionMode,
    /// What they require.
    pub capabilities: CapabilitySet,
    /// How many.
    pub tasks: i64,
    /// Seconds since the oldest of them became ready.
    pub oldest_secs: f64,
}

/// Who there is, and how the database fares.
#[derive(Debug, Clone, Copy)]
pub struct WorkerCount {
    /// Agents whose session lives.
    pub agents: i64,
    /// Replicas whose session lives.
    pub replicas: i64,
    /// Seconds since the oldest transaction began that holds back vacuum.
    pub oldest_transaction_secs: f64,
    /// How full the queue of notifications is, from 0 to 1.
    pub notify_queue: f64,
}

impl Store {
    /// Unended tasks by lane, mode and status.
    pub async fn count_tasks(&self) -> Result<Vec<TaskCount>, StoreError> {
        let rows = self.read(&COUNT_TASKS, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(TaskCount {
                    status: word(row, "status")?,
                    execution_mode: word(row, "execution_mode")?,
                    capabilities: CapabilitySet::from(get::<Vec<String>>(row, "capabilities")),
                    tasks: get(row, "tasks"),
                    oldest_secs: get(row, "oldest_secs"),
                })
            })
            .collect()
    }

    /// Living agents and replicas, and what slows the database down.
    pub async fn count_workers(&self) -> Result<WorkerCount, StoreError> {
        let client = self.client().await?;
        let row = COUNT_WORKERS.one(&client, &[]).await?;
        Ok(WorkerCount {
            agents: get(&row, "agents"),
            replicas: get(&row, "replicas"),
            oldest_transaction_secs: get(&row, "oldest_transaction_secs"),
            notify_queue: get(&row, "notify_queue"),
        })
    }
}
