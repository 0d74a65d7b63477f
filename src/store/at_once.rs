//! The claim for one agent that waits, when a hint has told of something for it: all of it in one statement and one round
//! trip, where [`super::work`] needs two. For who waits, that is a good part of the time between a task's commit and the reply.
//!
//! It cannot count under its locks what the session holds, because its snapshot is older. So it is for a session of which
//! this process knows that, see [`super::ledger`], and for which nobody else has claimed since. All others are served by the
//! claim in full.

use std::{collections::HashMap, time::Duration};

use super::{
    PullClaims, Store, StoreError, Waiter,
    claims::claimed_line,
    connection::rows_planned,
    error::retry,
    journal::Journal,
    ledger::{Claimed, Registered},
    ready::{Found, Ranges, ReadyRow},
    rows,
    statement::{CLAIM_PULL_AT_ONCE, Params},
};
use crate::model::{Actor, Source};

/// The tasks that it shows at most.
const DEPTH: i64 = 2;

/// What has to be known of who asks.
struct Known {
    registered: Registered,
    held: Vec<Claimed>,
    ranges: Ranges,
}

impl Store {
    /// Claims for an agent that waits, as [`Store::claim_for_agents`] does, but without a look beforehand at what there is.
    pub async fn claim_at_once(&self, waiter: &Waiter) -> Result<PullClaims, StoreError> {
        let mut unheard = false;
        retry!(self.at_once_or_in_full(waiter, &mut unheard).await)
    }

    async fn at_once_or_in_full(
        &self,
        waiter: &Waiter,
        unheard: &mut bool,
    ) -> Result<PullClaims, StoreError> {
        if !*unheard && let Some(claims) = self.at_once(waiter, unheard).await? {
            return Ok(claims);
        }
        let waiters = std::slice::from_ref(waiter);
        Ok(self.work_once(&[], Duration::ZERO, waiters, None, unheard).await?.claims)
    }

    /// `None`, and nothing was done, where it cannot be in one statement.
    async fn at_once(
        &self,
        waiter: &Waiter,
        unheard: &mut bool,
    ) -> Result<Option<PullClaims>, StoreError> {
        let visit = self.ledger().visit([waiter.session].into_iter());
        let Some(Known { registered, mut held, ranges }) = self.known(waiter) else {
            visit.settle(HashMap::new());
            return Ok(None);
        };
        let mut client = self.client().await?;
        // Others are to look further down.
        let _head = self.crowd().take_head(1);
        let ask: Params<'_> = &[
            &ranges.lanes,
            &ranges.priorities,
            &ranges.lows,
            &waiter.session.0,
            &registered.agent_id,
            &waiter.claim_id,
            &self.ledger().claimer,
        ];
        *unheard = true;
        let claiming = rows_planned(&mut client, &CLAIM_PULL_AT_ONCE, ask).await;
        let found = claiming.inspect_err(|_| self.ready().forget())?;
        let mut journal = Journal::default();
        let mut claims = PullClaims::default();
        for row in &found {
            let Some(task) = rows::shown_task(row)? else { continue };
            let (task_id, lease) = (task.task_id, task.lease);
            let (claim_id, of_issue) = (Some(waiter.claim_id), task.source == Source::Forgejo);
            held.push(Claimed { task_id, lease, claim_id, of_issue });
            claims.claimed.push((0, task_id, lease));
            claims.tasks.insert(task_id, task);
            journal.note(|| {
                let agent = Actor::Agent(registered.agent_id.clone());
                claimed_line(row, agent.to_string())
            });
        }
        journal.write();
        // Somebody else was about to take it, or this process did not know all.
        claims.shortfall = claims.claimed.is_empty() && !found.is_empty();
        let gone = claims.tasks.keys().copied().collect();
        let rows = found.iter().map(ReadyRow::from).collect();
        self.ready().found(&Found { ranges, rows, depth: DEPTH }, &gone);
        visit.settle(HashMap::from([(waiter.session, held)]));
        Ok(Some(claims))
    }

    /// `None` where that is not all known, or where more than one task is asked for, or another claim is under way.
    fn known(&self, waiter: &Waiter) -> Option<Known> {
        let registered = self.ledger().registered(waiter.session)?;
        let held = self.ledger().held(waiter.session)?;
        let ranges = self.ready().ranges(&[&self.effective(waiter)?], false);
        let has_room = waiter.has_room(&held, &registered);
        let is_simple = waiter.max_tasks == 1 && !ranges.blind && self.crowd().is_alone();
        (has_room && is_simple).then_some(Known { registered, held, ranges })
    }
}
