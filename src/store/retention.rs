//! What nobody needs any more: ended tasks, deliveries, keys and sessions in bounded batches; events and output by the week.

use std::{collections::BTreeSet, time::Duration};

use uuid::Uuid;

use super::{
    Store, StoreError,
    rows::get,
    statement::{
        DELETE_OLD_DELIVERIES, DELETE_OLD_KEYS, DELETE_OLD_SESSIONS, LIST_OLD_PARTITIONS,
        PURGE_TASKS, Params, Statement,
    },
};
use crate::{model::TaskId, telemetry::error_chain};

/// Rows looked at, or deleted, in one statement, at most.
const BATCH: i32 = 1_000;

/// One step along the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeStep {
    /// Where the next step begins; `None` at the end.
    pub last: Option<TaskId>,
    /// Tasks forgotten.
    pub purged: i64,
}

/// What came of dropping old partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OldPartitions {
    /// Those that are gone.
    pub dropped: Vec<String>,
    /// Those that somebody is in the way of; they are for the next round.
    pub left: Vec<String>,
}

impl Store {
    /// Forgets what ended longer than `retention` ago among the next tasks after `place`.
    pub async fn purge_tasks(
        &self,
        retention: Duration,
        place: TaskId,
    ) -> Result<PurgeStep, StoreError> {
        let client = self.client().await?;
        let row =
            PURGE_TASKS.one(&client, &[&retention.as_secs_f64(), &place.0, &false, &BATCH]).await?;
        Ok(PurgeStep {
            last: get::<Option<Uuid>>(&row, "last_id").map(TaskId),
            purged: get(&row, "purged"),
        })
    }

    /// Forgets a batch of deliveries, idempotency keys and ended sessions that are older than `retention`. True while there
    /// may be more.
    pub async fn delete_old_rows(&self, retention: Duration) -> Result<bool, StoreError> {
        let client = self.client().await?;
        let statements: [&Statement; 3] =
            [&DELETE_OLD_DELIVERIES, &DELETE_OLD_KEYS, &DELETE_OLD_SESSIONS];
        let mut more = false;
        for statement in statements {
            let row = statement.one(&client, &[&retention.as_secs_f64(), &BATCH]).await?;
            more |= get::<i64>(&row, "deleted") >= i64::from(BATCH);
        }
        Ok(more)
    }

    /// Detaches and drops the weekly partitions that ended longer than `retention` ago. Detaching is no part of a
    /// transaction, so it has a connection of its own, past a pooler; it waits for nobody longer than 100 ms, and whatever
    /// was broken off anywhere, by whichever replica, is gone on with.
    pub async fn drop_old_partitions(
        &self,
        retention: Duration,
    ) -> Result<OldPartitions, StoreError> {
        let mut result = OldPartitions::default();
        let client = self.client().await?;
        let secs = retention.as_secs_f64();
        let params: Params<'_> = &[&secs];
        let old = || LIST_OLD_PARTITIONS.rows(&client, params);
        if old().await?.is_empty() {
            return Ok(result);
        }
        let direct = self.dedicated().await?;
        direct
            .batch_execute("set lock_timeout = '100ms'")
            .await
            .map_err(|source| StoreError::Statement { statement: "drop_old_partitions", source })?;
        let mut left = BTreeSet::new();
        loop {
            let rows = old().await?;
            let Some(row) = rows.iter().find(|r| !left.contains(get::<&str>(r, "name"))) else {
                break;
            };
            let (name, step): (String, String) = (get(row, "name"), get(row, "step"));
            match direct.batch_execute(&step).await {
                Ok(()) if step.starts_with("drop") => result.dropped.push(name),
                Ok(()) => {}
                Err(source) => {
                    // Somebody reads it, or another replica was faster.
                    let error = StoreError::Statement { statement: "drop_old_partitions", source };
                    tracing::debug!(partition = name, step, error = %error_chain(&error), "a partition is left for later");
                    left.insert(name);
                }
            }
        }
        // Another replica may have dropped it meanwhile.
        let there = old().await?;
        result.left = there.iter().map(|r| get(r, "name")).collect();
        Ok(result)
    }
}
