//! Tasks on their way to a caller.

use std::sync::Arc;

use super::{Replica, Reply, settle};
use crate::{
    model::{SessionId, Task},
    store::{HeldLease, PullClaims},
};

/// Tasks that were claimed for a caller.
///
/// Dropped before they were delivered, they go back as if they had never been claimed; but not those that the same request
/// had been answered with before: their holder may be at work.
#[derive(Debug)]
pub struct Handed {
    replica: Arc<Replica>,
    tasks: Vec<Task>,
    undelivered: Vec<HeldLease>,
    /// Until the reply is written.
    replies: Vec<Reply>,
}

impl Handed {
    /// What a claim got for the waiter at this place.
    pub(super) fn new(
        replica: &Arc<Replica>,
        session: SessionId,
        claims: &mut PullClaims,
        place: usize,
    ) -> Self {
        let mut handed = Self {
            replica: Arc::clone(replica),
            tasks: Vec::new(),
            undelivered: Vec::new(),
            replies: Vec::new(),
        };
        let repeated = claims.repeated.contains(&place);
        for (_, task_id, lease) in claims.claimed.iter().filter(|claim| claim.0 == place) {
            handed.replies.push(replica.replies.open(*task_id, *lease));
            // Two calls that repeat one request get the same.
            handed.tasks.extend(if repeated {
                claims.tasks.get(task_id).cloned()
            } else {
                claims.tasks.remove(task_id)
            });
            if !repeated {
                let held = HeldLease { task_id: *task_id, lease: *lease, holder: session };
                handed.undelivered.push(held);
            }
        }
        handed
    }

    /// The tasks, to be written to the caller.
    pub fn take_tasks(&mut self) -> Vec<Task> {
        std::mem::take(&mut self.tasks)
    }

    /// The reply is on its way: the claims stand.
    pub fn delivered(mut self) {
        self.undelivered.clear();
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if !self.undelivered.is_empty() {
            let (held, replica) =
                (std::mem::take(&mut self.undelivered), Arc::clone(&self.replica));
            self.replica.shutdown.spawn(async move { settle::undo(&replica, held).await });
        }
    }
}
