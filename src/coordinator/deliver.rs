//! Deliveries of the forge: those that arrive together and are plainly new are committed together.

use std::sync::Arc;

use super::{
    Replica,
    batch::{Batch, Shared},
};
use crate::store::{About, Delivery, DeliveryOutcome, StoreError};

/// A delivery on its way.
#[derive(Debug)]
pub(super) struct Deliver(Arc<Delivery>);

/// Text of an issue that weighs as much as another delivery: a batch is one message to the database.
const WEIGHT: usize = 16 * 1024;

/// Takes a delivery, once.
pub async fn deliver(
    replica: &Arc<Replica>,
    delivery: &Arc<Delivery>,
) -> Result<DeliveryOutcome, Arc<StoreError>> {
    let item = Deliver(Arc::clone(delivery));
    if let Some(outcome) = Batch::submit(replica, |replica| &replica.delivering, item).await? {
        return Ok(outcome);
    }
    // Something is known of it or of its issue: that is not done together with others, whose tasks it would have to lock, too.
    let outcome = replica.store.take_delivery(delivery).await?;
    if outcome.wakes {
        replica.wake_ready();
        replica.wake_revoked();
    }
    Ok(outcome)
}

impl Shared for Deliver {
    type Key = String;
    /// `None` for one that is not plainly new: nothing was done about it.
    type Reply = Option<DeliveryOutcome>;
    const MOST: usize = 100;

    fn keys(&self) -> Vec<String> {
        let id = self.0.delivery_id.clone();
        match &self.0.about {
            About::Issue { key, .. } => vec![id, key.clone()],
            About::Nothing(_) => vec![id],
        }
    }

    fn size(&self) -> usize {
        match &self.0.about {
            About::Issue { state, .. } => 1 + state.body.len() / WEIGHT,
            About::Nothing(_) => 1,
        }
    }

    async fn carry_out(
        replica: &Arc<Replica>,
        items: &[Self],
    ) -> Result<Vec<Option<DeliveryOutcome>>, StoreError> {
        let deliveries: Vec<&Delivery> = items.iter().map(|item| &*item.0).collect();
        let taken = replica.store.take_deliveries(&deliveries).await?;
        replica.wake_ready_at(&taken.places);
        Ok(taken.outcomes)
    }
}
