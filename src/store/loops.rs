//! What the loops write: each in bounded batches, safe on all replicas at once.

use std::time::Duration;

use super::{
    Store, StoreError,
    rows::get,
    statement::{
        CHECK_PARTITIONS, DECIDE_PULL, DELETE_OLD_NOTICES, EXPIRE_PINS, LIST_LANELESS_SETS,
        MAKE_PARTITIONS, PROMOTE_DUE_TASKS, SET_LANES,
    },
};
use crate::model::Actor;

/// Rows changed in one statement, at most.
const BATCH: i64 = 500;

impl Store {
    /// Phase 2: decides what waited too long and no known host could ever serve. Returns how many.
    pub async fn decide_pull(&self, grace: Duration, actor: &Actor) -> Result<i64, StoreError> {
        let client = self.client().await?;
        let row =
            DECIDE_PULL.one(&client, &[&grace.as_secs_f64(), &BATCH, &actor.to_string()]).await?;
        Ok(get(&row, "decided"))
    }

    /// Makes scheduled tasks ready whose time has come. Returns how many.
    pub async fn promote_due_tasks(&self, actor: &Actor) -> Result<i64, StoreError> {
        let client = self.client().await?;
        let row = PROMOTE_DUE_TASKS.one(&client, &[&BATCH, &actor.to_string()]).await?;
        Ok(get(&row, "promoted"))
    }

    /// Frees tasks whose reservation ran out. Returns how many.
    pub async fn expire_pins(&self, actor: &Actor) -> Result<i64, StoreError> {
        let client = self.client().await?;
        let row = EXPIRE_PINS.one(&client, &[&BATCH, &actor.to_string()]).await?;
        Ok(get(&row, "freed"))
    }

    /// Gives lanes to ready tasks that came by SQL with a set that was unknown. Returns how many.
    pub async fn intern_laneless(&self) -> Result<u64, StoreError> {
        let client = self.client().await?;
        let sets = LIST_LANELESS_SETS
            .rows(&client, &[])
            .await?
            .iter()
            .map(|row| {
                serde_json::from_value(get(row, "capabilities")).map_err(|e| StoreError::Unknown {
                    what: format!("capabilities of an unknown shape ({e})"),
                })
            })
            .collect::<Result<Vec<Vec<String>>, _>>()?;
        drop(client);
        if sets.is_empty() {
            return Ok(0);
        }
        self.intern_lanes(sets.iter().map(Vec::as_slice)).await?;
        let client = self.client().await?;
        SET_LANES.run(&client, &[&500_i32]).await
    }

    /// Makes the partitions of the time ahead. Returns how many were missing.
    pub async fn make_partitions(&self, ahead: Duration) -> Result<i32, StoreError> {
        let client = self.client().await?;
        Ok(get(&MAKE_PARTITIONS.one(&client, &[&ahead.as_secs_f64()]).await?, "made"))
    }

    /// True when the partitions of this week and the next are there.
    pub async fn check_partitions(&self) -> Result<bool, StoreError> {
        let client = self.client().await?;
        Ok(get(&CHECK_PARTITIONS.one(&client, &[]).await?, "ready"))
    }

    /// Forgets cancel notices older than a day.
    pub async fn delete_old_notices(&self) -> Result<u64, StoreError> {
        let client = self.client().await?;
        DELETE_OLD_NOTICES.run(&client, &[]).await
    }
}
