//! Lanes as a whole: paused, and counted.

use super::{
    Store, StoreError,
    rows::get,
    statement::{READ_STATS, SET_LANE_PAUSED},
};
use crate::model::CapabilitySet;

impl Store {
    /// Pauses the lane of this set, or ends its pause. A set that no task has required yet gets its lane.
    pub async fn set_lane_paused(
        &self,
        set: &CapabilitySet,
        paused: bool,
    ) -> Result<(), StoreError> {
        self.intern_lanes(std::iter::once(set.as_slice())).await?;
        let client = self.client().await?;
        SET_LANE_PAUSED.one(&client, &[&set.as_slice(), &paused]).await?;
        Ok(())
    }

    /// The figures of `GET /api/v1/stats`, in its shape.
    pub async fn read_stats(&self) -> Result<serde_json::Value, StoreError> {
        let row = self.search(&READ_STATS, &[]).await?.into_iter().next();
        Ok(get(&READ_STATS.needed(row)?, "stats"))
    }
}
