//! Vacuum of the queue's table.

use std::time::{Duration, Instant};

use super::{
    Store, StoreError,
    rows::get,
    statement::{READ_DEAD_TASKS, VACUUM_TASKS},
};

/// What came of a vacuum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacuumed {
    /// How long it took.
    pub took: Duration,
    /// It had to leave what was dead: somebody's snapshot is older.
    pub in_vain: bool,
}

impl Store {
    /// Vacuums `fleet.tasks` if it is due after so many tasks were `taken`, see `sql/read_dead_tasks.sql`. `None` when it is not.
    pub async fn vacuum_tasks(&self, taken: i64) -> Result<Option<Vacuumed>, StoreError> {
        let look = async || self.read_one(&READ_DEAD_TASKS, &[&taken]).await;
        let before = look().await?;
        if !get::<bool>(&before, "is_due") {
            return Ok(None);
        }
        let begun = Instant::now();
        VACUUM_TASKS.run(&self.client().await?, &[]).await?;
        let took = begun.elapsed();
        let after = look().await?;
        let count = |row| get::<i64>(row, "vacuums");
        if count(&after) == count(&before) {
            // Somebody else was about to.
            return Ok(None);
        }
        // A task that is taken and completed leaves two dead rows.
        Ok(Some(Vacuumed { took, in_vain: get::<i64>(&after, "dead") > taken }))
    }
}
