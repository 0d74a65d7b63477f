//! What this agent holds: one entry for each claim, from the dequeue to the end of its run.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::model::{Lease, Task, TaskId};

/// A claim as it is kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claim {
    /// As it was dequeued.
    pub(super) task: Task,
    /// The lease under which it was dequeued; names the run.
    pub(super) run_lease: Lease,
    /// By this machine's clock.
    pub(super) claimed_at: Timestamp,
}

/// Why a run is ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The task was called off, or belongs to somebody else by now. Nobody waits for a receipt.
    Lost,
    /// The agent ends; the task goes back to the queue.
    Release,
}

/// A claim at work.
#[derive(Debug)]
pub(super) struct Held {
    /// What is kept on disk.
    pub(super) claim: Claim,
    /// The present lease; a registration that resumes may answer another one.
    lease: AtomicI64,
    /// An earlier process of this agent claimed it.
    pub(super) is_resumed: bool,
    stop: watch::Sender<Option<Stop>>,
}

impl Held {
    /// A claim that was just made.
    pub(super) fn new(claim: Claim) -> Arc<Self> {
        Self::of(claim, false)
    }

    /// A claim that an earlier process of this agent left on disk.
    pub(super) fn resumed(claim: Claim) -> Arc<Self> {
        Self::of(claim, true)
    }

    fn of(claim: Claim, is_resumed: bool) -> Arc<Self> {
        let lease = AtomicI64::new(claim.run_lease.0);
        Arc::new(Self { claim, lease, is_resumed, stop: watch::Sender::new(None) })
    }

    pub(super) fn task_id(&self) -> TaskId {
        self.claim.task.task_id
    }

    pub(super) fn lease(&self) -> Lease {
        Lease(self.lease.load(Ordering::Acquire))
    }

    pub(super) fn set_lease(&self, lease: Lease) {
        self.lease.store(lease.0, Ordering::Release);
    }

    /// Asks the run to end. The first reason stays, unless the task is lost meanwhile.
    pub(super) fn stop(&self, reason: Stop) {
        self.stop.send_if_modified(|now| {
            let changes = now.is_none() || (reason == Stop::Lost && *now != Some(Stop::Lost));
            if changes {
                *now = Some(reason);
            }
            changes
        });
    }

    /// The reason, once there is one.
    pub(super) fn stop_reason(&self) -> Option<Stop> {
        *self.stop.borrow()
    }

    /// Ends when the run is asked to end.
    pub(super) async fn stopped(&self) -> Stop {
        let mut reason = self.stop.subscribe();
        loop {
            if let Some(reason) = *reason.borrow_and_update() {
                return reason;
            }
            // The sender lives in `self`.
            let _ = reason.changed().await;
        }
    }
}

type Key = (TaskId, Lease);

fn key(held: &Held) -> Key {
    (held.task_id(), held.claim.run_lease)
}

/// Where older claims of the same task are.
fn older(held: &Held) -> Range<Key> {
    (held.task_id(), Lease(i64::MIN))..key(held)
}

/// All claims of this agent.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: Mutex<BTreeMap<Key, Arc<Held>>>,
    changed: watch::Sender<()>,
}

impl Claims {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Held>>> {
        // Nothing panics while it is locked.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a claim. Answers with older ones of the same task that are here still: they are lost, or there would be no new one.
    pub(super) fn insert(&self, held: &Arc<Held>) -> Vec<Arc<Held>> {
        let mut all = self.held();
        all.insert(key(held), Arc::clone(held));
        all.range(older(held)).map(|(_, older)| Arc::clone(older)).collect()
    }

    pub(super) fn remove(&self, held: &Held) {
        self.held().remove(&key(held));
        self.changed.send_replace(());
    }

    /// All of them; of two claims of one task the older comes first.
    pub(super) fn all(&self) -> Vec<Arc<Held>> {
        self.held().values().cloned().collect()
    }

    /// Waits until no older claim of the same task is at work here: its run may still be ending in the same folder.
    pub(super) async fn wait_for_older(&self, held: &Held) {
        self.wait_until(|all| all.range(older(held)).next().is_none()).await;
    }

    /// Waits until nothing is held.
    pub(super) async fn wait_until_empty(&self) {
        self.wait_until(BTreeMap::is_empty).await;
    }

    async fn wait_until(&self, holds: impl Fn(&BTreeMap<Key, Arc<Held>>) -> bool) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if holds(&self.held()) {
                return;
            }
            // The sender lives in `self`.
            let _ = changed.changed().await;
        }
    }
}

#[cfg(test)]
impl Claim {
    /// A claim under this lease; the same task each time.
    pub(super) fn for_test(lease: i64) -> Self {
        let task = serde_json::json!({
            "task_id": "0192f0c0-0000-7000-8000-000000000001", "key": "org/repo#1", "source": "api", "title": "t",
            "labels": [], "capabilities": [], "priority": "normal", "status": "assigned", "lease": lease,
            "attempt": 1, "max_retries": 2, "retry_count": 0, "review_count": 0, "timeout_secs": 60,
            "branch_name": "task/x", "notes": [], "created_at": "2026-11-24T00:00:00Z", "prompt": "do it",
        });
        Self {
            task: serde_json::from_value(task).unwrap(),
            run_lease: Lease(lease),
            claimed_at: Timestamp::UNIX_EPOCH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_younger_claim_waits_for_the_older() {
        let claims = Arc::new(Claims::default());
        let (old, young) = (Held::new(Claim::for_test(1)), Held::new(Claim::for_test(2)));
        assert!(claims.insert(&old).is_empty());
        let lost = claims.insert(&young);
        assert_eq!(lost.iter().map(|held| held.lease()).collect::<Vec<_>>(), [Lease(1)]);
        claims.wait_for_older(&old).await;
        let waiting = {
            let (claims, young) = (Arc::clone(&claims), Arc::clone(&young));
            tokio::spawn(async move { claims.wait_for_older(&young).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        claims.remove(&old);
        waiting.await.unwrap();
        claims.remove(&young);
        claims.wait_until_empty().await;
    }

    #[tokio::test]
    async fn lost_overrules_release() {
        let held = Held::new(Claim::for_test(1));
        assert_eq!(held.stop_reason(), None);
        held.stop(Stop::Release);
        assert_eq!(held.stopped().await, Stop::Release);
        held.stop(Stop::Lost);
        held.stop(Stop::Release);
        assert_eq!(held.stopped().await, Stop::Lost);
    }
}
