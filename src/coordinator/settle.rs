//! The ends of leases: receipts, releases and undone claims that arrive together commit together, and with each receipt,
//! when its agent wants it, the claim of the next task.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use uuid::Uuid;

use super::{
    Handed, Replica,
    batch::{Batch, Shared},
    until_stored,
};
use crate::{
    model::{Actor, SessionId, Status, Task, TaskId},
    store::{EndLease, Ended, HeldLease, Outcome, StoreError, Waiter},
    telemetry::error_chain,
};

/// Leases that end together, and who wants work after it.
#[derive(Debug)]
pub(super) struct Settle {
    ends: Vec<EndLease>,
    next: Option<Waiter>,
}

/// What came of them.
#[derive(Debug)]
pub struct Settled {
    /// Of each, in order.
    pub ended: Vec<Ended>,
    /// The tasks whose leases have ended, as they are now.
    pub tasks: Vec<Option<Task>>,
    /// What the agent is to do next.
    pub next: Option<Handed>,
}

/// Ends leases, each task once, all in one transaction; with `next`, whoever asks gets work in the same transaction, if
/// there is any.
pub async fn settle(
    replica: &Arc<Replica>,
    ends: Vec<EndLease>,
    next: Option<Waiter>,
) -> Result<Settled, Arc<StoreError>> {
    Batch::submit(replica, |replica| &replica.settling, Settle { ends, next }).await
}

impl Shared for Settle {
    type Key = Uuid;
    type Reply = Settled;
    const MOST: usize = 100;

    fn keys(&self) -> Vec<Uuid> {
        let tasks = self.ends.iter().map(|end| end.held.task_id.0);
        tasks.chain(self.next.iter().map(|waiter| waiter.session.0)).collect()
    }

    fn size(&self) -> usize {
        self.ends.len().max(1)
    }

    async fn carry_out(replica: &Arc<Replica>, items: &[Self]) -> Result<Vec<Settled>, StoreError> {
        let ends: Vec<EndLease> = items.iter().flat_map(|item| item.ends.iter().cloned()).collect();
        let waiters: Vec<Waiter> = items.iter().filter_map(|item| item.next.clone()).collect();
        let backoff = replica.config.tasks.retry_backoff;
        let mut worked = replica.store.work(&ends, backoff, &waiters).await?;
        let mut taken: HashMap<SessionId, usize> = HashMap::new();
        for (place, ..) in &worked.claims.claimed {
            *taken.entry(waiters[*place].session).or_default() += 1;
        }
        replica.matchmaker.has_claimed(worked.claims.claimed.len());
        wake(replica, &ends, &worked.ended, taken);

        let mut ended = worked.ended.drain(..);
        let mut place = 0;
        let claims = &mut worked.claims;
        // What was given back here may have been claimed here, also by who comes before: first all that have ended.
        let claimed: HashSet<TaskId> = claims.claimed.iter().map(|claim| claim.1).collect();
        let shown: Vec<Option<Task>> = ends
            .iter()
            .map(|end| match end.held.task_id {
                id if claimed.contains(&id) => claims.tasks.get(&id).cloned(),
                id => claims.tasks.remove(&id),
            })
            .collect();
        let mut shown = shown.into_iter();
        Ok(items
            .iter()
            .map(|item| Settled {
                ended: ended.by_ref().take(item.ends.len()).collect(),
                tasks: shown.by_ref().take(item.ends.len()).collect(),
                next: item.next.as_ref().map(|waiter| {
                    let handed = Handed::new(replica, waiter.session, claims, place);
                    place += 1;
                    handed
                }),
            })
            .collect())
    }
}

/// A slot is free, or a task is back in the queue. A slot that is freed and taken in one commit is no news.
fn wake(
    replica: &Replica,
    ends: &[EndLease],
    ended: &[Ended],
    mut taken: HashMap<SessionId, usize>,
) {
    let now = || {
        ends.iter().zip(ended).filter_map(|(end, ended)| match ended {
            Ended::Now(status) => Some((end, *status)),
            Ended::Before | Ended::Not(_) => None,
        })
    };
    if now().any(|(_, status)| status == Status::Scheduled) {
        replica.wake_scheduler();
    }
    if now().any(|(_, status)| matches!(status, Status::Created | Status::Assigned)) {
        replica.wake_ready();
    } else {
        let mut is_free = |holder: &SessionId| match taken.get_mut(holder) {
            Some(left @ 1..) => {
                *left -= 1;
                false
            }
            _ => true,
        };
        let holders = now().map(|(end, _)| end.held.holder);
        let freed: Vec<SessionId> = holders.filter(|holder| is_free(holder)).collect();
        if !freed.is_empty() {
            replica.wake_freed(&freed);
        }
    }
}

/// Ends leases, each task once, all in one transaction, but those whose task somebody has locked. Returns what became of them.
///
/// Where one is locked, they end one by one: that one keeps its lease, which whoever asks, or the reaper, ends later. Where the
/// second one meets a lock, all of them may, and each would wait for as long as the whole batch did: the rest is left, too.
pub async fn end_unlocked(
    replica: &Replica,
    ends: Vec<EndLease>,
) -> Result<Vec<(EndLease, Ended)>, StoreError> {
    let backoff = replica.config.tasks.retry_backoff;
    if ends.len() > 1 {
        match replica.store.end_leases(&ends, backoff).await {
            Err(error) if error.is_locked_out() => {}
            ended => return Ok(ends.into_iter().zip(ended?).collect()),
        }
    }
    let mut done = Vec::new();
    let mut locked = 0;
    for one in ends {
        match replica.store.end_leases(std::slice::from_ref(&one), backoff).await {
            Ok(mut ended) => done.extend(ended.pop().map(|ended| (one, ended))),
            Err(error) if error.is_locked_out() => {
                tracing::warn!(task.id = %one.held.task_id, "somebody has locked this task, so its lease did not end yet");
                locked += 1;
                if locked == 2 {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Gives claims back that never reached their callers. Until it is stored: nobody else knows of them, and their agent has to
/// leave them out of two heartbeats before they are found.
pub(super) async fn undo(replica: &Arc<Replica>, held: Vec<HeldLease>) {
    let tasks = held.len();
    let ends: Vec<EndLease> = held
        .into_iter()
        .map(|held| EndLease {
            held,
            outcome: Outcome::Undone,
            reason: Some("the caller had gone".to_owned()),
            wait_secs: None,
            receipt: None,
            actor: Actor::Replica(replica.config.server.replica_id.clone()),
        })
        .collect();
    if let Err(error) = until_stored!(replica, settle(replica, ends.clone(), None)) {
        tracing::error!(
            error = %error_chain(&*error),
            tasks,
            "claims whose callers had gone could not be undone; they return when their leases end"
        );
    }
}
