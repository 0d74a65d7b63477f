//! Creations: requests that arrive together are committed together.

use std::sync::Arc;

use super::{
    Replica,
    batch::{Batch, Shared},
};
use crate::store::{Creation, NewRequest, ReadyPlace, StoreError};

/// A request on its way.
#[derive(Debug)]
pub(super) struct Create(NewRequest);

/// Creates the tasks of a request, all or none.
pub async fn create(
    replica: &Arc<Replica>,
    request: NewRequest,
) -> Result<Creation, Arc<StoreError>> {
    Batch::submit(replica, |replica| &replica.creating, Create(request)).await
}

impl Shared for Create {
    type Key = String;
    type Reply = Creation;
    const MOST: usize = 1_000;

    fn keys(&self) -> Vec<String> {
        let named = self.0.tasks.iter().filter_map(|task| task.key.clone());
        named.chain(self.0.idempotency_key.clone()).collect()
    }

    fn size(&self) -> usize {
        // A request that is named goes alone: what it makes depends on what was made under its name.
        if self.0.idempotency_key.is_some() { Self::MOST } else { self.0.tasks.len() }
    }

    async fn carry_out(
        replica: &Arc<Replica>,
        items: &[Self],
    ) -> Result<Vec<Creation>, StoreError> {
        let requests: Vec<&NewRequest> = items.iter().map(|item| &item.0).collect();
        let tell = |place: ReadyPlace| replica.wake.tell_soon(place);
        let created = replica.store.create_together(&requests, &tell).await?;
        for Creation { places, told, .. } in &created {
            if *told {
                replica.wake_ready_here(places);
            } else {
                replica.wake_ready_at(places);
            }
        }
        if created.iter().any(|made| made.places.len() < made.tasks.len()) {
            // Some are for later.
            replica.wake_scheduler();
        }
        Ok(created)
    }
}
