//! Creations: requests that arrive together are committed together.

use std::sync::Arc;

use super::{
    Replica,
    batch::{Batch, Shared, weight},
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
        if self.0.idempotency_key.is_some() {
            return Self::MOST;
        }
        self.0.tasks.iter().map(|task| weight(&task.body)).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Actor, store::NewTask};

    fn request(tasks: usize, body: usize) -> Create {
        let task = NewTask { body: "x".repeat(body), ..NewTask::for_test() };
        let actor = Actor::Operator("operator");
        Create(NewRequest { tasks: vec![task; tasks], idempotency_key: None, actor })
    }

    #[test]
    fn a_batch_is_bounded_by_its_text_and_ordinary_tasks_count_one_each() {
        for body in [0, 1 << 10, 15 << 10] {
            assert_eq!(
                (request(1, body).size(), request(1_000, body).size()),
                (1, 1_000),
                "{body}"
            );
        }
        // As large as a request may be.
        let large = request(1, 1 << 20).size();
        assert!(Create::MOST / large <= 16, "{large}");
        let mut named = request(1, 0);
        named.0.idempotency_key = Some("once".to_owned());
        assert_eq!(named.size(), Create::MOST);
    }
}
