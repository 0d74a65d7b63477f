//! Deliveries of the forge: those that arrive together and are plainly new are committed together.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Replica,
    batch::{Batch, Shared, weight},
};
use crate::{
    store::{About, Delivery, DeliveryOutcome, StoreError},
    telemetry::error_chain,
};

/// A delivery on its way.
#[derive(Debug)]
pub(super) struct Deliver(Arc<Delivery>);

/// So long a delivery is tried again while the database is away: a forge does not send it a second time.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause before the first of these tries, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// KiB of deliveries that are kept for that at once.
pub(super) const KEPT: usize = 64 << 10;

/// Takes a delivery, once. While the database is away, tries again for a minute, or as long as there is room.
pub async fn deliver(
    replica: &Arc<Replica>,
    delivery: &Arc<Delivery>,
) -> Result<DeliveryOutcome, Arc<StoreError>> {
    let (begun, mut pause, mut room) = (Instant::now(), PAUSES.0, None);
    let (key, kib) = match &delivery.about {
        About::Issue { key, state, .. } => (Some(key), 1 + state.body.len() / 1024),
        About::Nothing(_) => (None, 1),
    };
    loop {
        let error = match take(replica, delivery).await {
            Err(error) if error.is_unavailable() => error,
            result => return result,
        };
        if room.is_none() {
            room = replica.kept.try_acquire_many(u32::try_from(kib).unwrap_or(u32::MAX)).ok();
            tracing::warn!(
                delivery.id = delivery.delivery_id,
                task.key = key,
                error = %error_chain(&error),
                "a delivery cannot be taken now; it is tried again for a minute"
            );
        }
        let over = room.is_none() || begun.elapsed() > PATIENCE;
        if over || replica.shutdown.sleep(pause).await {
            tracing::error!(
                delivery.id = delivery.delivery_id,
                task.key = key,
                error = %error_chain(&error),
                "a delivery is lost: replay it from the webhook's page in the forge"
            );
            return Err(error);
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn take(
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
            About::Issue { state, .. } => weight(&state.body),
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
