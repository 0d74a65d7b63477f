//! What holders say of their work: what arrives together is committed together.

use std::sync::Arc;

use super::{
    Replica,
    batch::{Batch, Shared},
};
use crate::{
    model::TaskId,
    store::{Start, Started, StoreError},
};

/// A word of a holder on its way.
#[derive(Debug)]
pub(super) struct Say(Start);

/// The holder works: `assigned` becomes `running`. Answers with the task.
pub async fn start(replica: &Arc<Replica>, start: Start) -> Result<Started, Arc<StoreError>> {
    Batch::submit(replica, |replica| &replica.starting, Say(start)).await
}

impl Shared for Say {
    type Key = TaskId;
    type Reply = Started;
    const MOST: usize = 100;

    fn keys(&self) -> Vec<TaskId> {
        vec![self.0.held.task_id]
    }

    async fn carry_out(replica: &Arc<Replica>, items: &[Self]) -> Result<Vec<Started>, StoreError> {
        let starts: Vec<Start> = items.iter().map(|item| item.0.clone()).collect();
        replica.store.start_tasks(&starts, true).await
    }
}
