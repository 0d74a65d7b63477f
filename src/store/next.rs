//! The claim for agents that complete a task and want the next one, all of it in one statement and one round trip, where
//! [`super::work`] needs two round trips of several statements. A busy fleet does little else.
//!
//! It cannot count under its locks what a session holds, because its snapshot is older. So it is for sessions of which this
//! process knows that, see [`super::ledger`], and for which nobody else has claimed since. And it takes only what is first in the
//! queue for its agents wherever one lane alone is: what is ready in several would have to be merged first. All others, and
//! whom it does not serve, are served by the claim in full.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use uuid::Uuid;

use super::{
    EndLease, Ended, PullClaims, Store, StoreError, Waiter, Worked,
    claims::claimed_line,
    connection::rows_planned,
    ending::{ended_line, is_completed, receipt_hash},
    journal::Journal,
    ledger::Claimed,
    ready::First,
    rows::{self, get, word},
    statement::{CLAIM_PULL_NEXT, Params},
};
use crate::model::{Actor, CapabilitySet, Lease, Receipt, SessionId, TaskId};

/// An agent that completes a task and wants the next one.
struct Turn<'a> {
    /// Places in the request.
    end: usize,
    waiter: usize,
    ending: &'a EndLease,
    waiting: &'a Waiter,
    agent_id: String,
    /// What it holds without the lease that ends.
    held: Vec<Claimed>,
    first: First,
}

impl Store {
    /// What [`Store::work`] does, in one statement for whom that is possible.
    pub(super) async fn work_or_next(
        &self,
        ends: &[EndLease],
        backoff: Duration,
        waiters: &[Waiter],
        unheard: &mut bool,
    ) -> Result<Worked, StoreError> {
        if *unheard {
            return self.work_once(ends, backoff, waiters, None, unheard).await;
        }
        let visit = self.ledger().visit(waiters.iter().map(|w| w.session));
        let turns = self.turns(ends, waiters);
        if turns.is_empty() {
            visit.settle(HashMap::new());
            return self.work_once(ends, backoff, waiters, None, unheard).await;
        }
        *unheard = true;
        let (mut ended, mut claims) = self.take_turns(&turns, ends.len()).await?;
        let mut held = HashMap::new();
        for turn in turns {
            let Some(Ended::Now(status)) = ended[turn.end] else { continue };
            crate::metrics::lease_ended(turn.ending.outcome.as_str(), status.as_str());
            let mut holds = turn.held;
            let got = claims.claimed.iter().find(|claim| claim.0 == turn.waiter);
            holds.extend(got.map(|&(_, task_id, lease)| {
                let claim_id = Some(turn.waiting.claim_id);
                Claimed { task_id, lease, claim_id, of_issue: false }
            }));
            held.insert(turn.waiting.session, holds);
        }
        visit.settle(held);

        // Whom it did not serve.
        let served: HashSet<usize> = claims.claimed.iter().map(|claim| claim.0).collect();
        let end_places: Vec<usize> = (0..ends.len()).filter(|n| ended[*n].is_none()).collect();
        let places: Vec<usize> = (0..waiters.len()).filter(|n| !served.contains(n)).collect();
        if !(end_places.is_empty() && places.is_empty()) {
            let ends: Vec<EndLease> = end_places.iter().map(|n| ends[*n].clone()).collect();
            let waiters: Vec<Waiter> = places.iter().map(|n| waiters[*n].clone()).collect();
            let mut rest = self.work_once(&ends, backoff, &waiters, None, &mut false).await?;
            for (place, outcome) in end_places.into_iter().zip(rest.ended) {
                ended[place] = Some(outcome);
            }
            rest.claims.at_places(&places);
            claims.join(rest.claims);
        }
        Ok(Worked { ended: ended.into_iter().flatten().collect(), claims })
    }

    /// Those who are served by the one statement, by all that is known.
    fn turns<'a>(&self, ends: &'a [EndLease], waiters: &'a [Waiter]) -> Vec<Turn<'a>> {
        let mut by_session: HashMap<SessionId, Option<usize>> = HashMap::new();
        for (place, end) in ends.iter().enumerate() {
            by_session
                .entry(end.held.holder)
                // One that ends several is not the case that this is for.
                .and_modify(|place| *place = None)
                .or_insert(Some(place));
        }
        let mut firsts: Vec<(CapabilitySet, Option<First>)> = Vec::new();
        let mut turns = Vec::new();
        for (waiter, waiting) in waiters.iter().enumerate() {
            let Some(Some(end)) = by_session.remove(&waiting.session) else { continue };
            let ending = &ends[end];
            if waiting.max_tasks != 1 || !is_completed(ending) {
                continue;
            }
            let Some(registered) = self.ledger().registered(waiting.session) else { continue };
            let Some(mut held) = self.ledger().held(waiting.session) else { continue };
            let lease = (ending.held.task_id, ending.held.lease);
            let of_issue = held
                .iter()
                .any(|claimed| (claimed.task_id, claimed.lease) == lease && claimed.of_issue);
            held.retain(|claimed| (claimed.task_id, claimed.lease) != lease);
            let is_own = ending.actor == Actor::Agent(registered.agent_id.clone());
            if of_issue || !waiting.has_room(&held, &registered) || !is_own {
                continue;
            }
            let set = waiting.offers(&registered.capabilities);
            let first = match firsts.iter().find(|(known, _)| *known == set) {
                Some((_, first)) => *first,
                None => {
                    let first = self.ready().first(&set);
                    firsts.push((set, first));
                    first
                }
            };
            if let Some(first) = first {
                let agent_id = registered.agent_id;
                turns.push(Turn { end, waiter, ending, waiting, agent_id, held, first });
            }
        }
        turns
    }

    /// Answers with what came of each end of the request, and with what was claimed.
    async fn take_turns(
        &self,
        turns: &[Turn<'_>],
        ends: usize,
    ) -> Result<(Vec<Option<Ended>>, PullClaims), StoreError> {
        /// Of each turn.
        macro_rules! of {
            (|$turn:ident| $value:expr) => {
                turns.iter().map(|$turn| $value).collect::<Vec<_>>()
            };
        }
        let receipts: Vec<serde_json::Value> =
            of!(|t| serde_json::to_value(&t.ending.receipt).unwrap_or_default());
        let hashes: Vec<Vec<u8>> = receipts.iter().map(receipt_hash).collect();
        let pull_requests = of!(|t| t.ending.receipt.as_ref().and_then(Receipt::pull_request));
        let ask: Params<'_> = &[
            &of!(|t| t.ending.held.task_id.0),
            &of!(|t| t.ending.held.lease.0),
            &of!(|t| t.waiting.session.0),
            &of!(|t| t.agent_id.as_str()),
            &receipts,
            &hashes,
            &pull_requests,
            &of!(|t| t.waiting.claim_id),
            &of!(|t| t.first.lane_id),
            &of!(|t| t.first.priority),
            &of!(|t| t.first.low),
            &(0..).take(turns.len()).collect::<Vec<i64>>(),
            &self.ledger().claimer,
        ];
        let mut client = self.client().await?;
        // Others are to look further down.
        let _head = self.crowd().take_head(turns.len());
        let claiming = rows_planned(&mut client, &CLAIM_PULL_NEXT, ask).await;
        drop(client);
        let rows = claiming.inspect_err(|_| self.ready().forget())?;

        let mut journal = Journal::default();
        let mut ended: Vec<Option<Ended>> = vec![None; ends];
        let mut claims = PullClaims::default();
        // Of each place what was taken first there.
        let mut taken: HashMap<First, i64> = HashMap::new();
        for row in &rows {
            let place = usize::try_from(get::<i64>(row, "place")).ok();
            let Some(turn) = place.and_then(|place| turns.get(place)) else { continue };
            if get::<Option<&str>>(row, "type").is_some() {
                ended[turn.end] = Some(Ended::Now(word(row, "to_status")?));
                journal.note(|| ended_line(turn.ending, row));
            } else {
                let (task_id, lease) =
                    (TaskId(get::<Uuid>(row, "task_id")), Lease(get(row, "lease")));
                claims.claimed.push((turn.waiter, task_id, lease));
                let seq: i64 = get(row, "seq");
                taken.entry(turn.first).and_modify(|first| *first = seq.min(*first)).or_insert(seq);
                journal.note(|| claimed_line(row, turn.ending.actor.to_string()));
            }
            if let Some(task) = rows::shown_task(row)? {
                claims.tasks.insert(task.task_id, task);
            }
        }
        journal.write();
        for (first, seq) in taken {
            self.ready().have_taken_from(&first, seq);
        }
        Ok((ended, claims))
    }
}

impl PullClaims {
    /// What was asked at these places of a larger request.
    pub(super) fn at_places(&mut self, places: &[usize]) {
        for claim in &mut self.claimed {
            claim.0 = places[claim.0];
        }
        for list in [&mut self.repeated, &mut self.ended, &mut self.barred] {
            list.iter_mut().for_each(|place| *place = places[*place]);
        }
    }

    /// Adds what came of others of the request.
    fn join(&mut self, other: Self) {
        self.claimed.extend(other.claimed);
        self.tasks.extend(other.tasks);
        self.repeated.extend(other.repeated);
        self.ended.extend(other.ended);
        self.barred.extend(other.barred);
        self.shortfall |= other.shortfall;
    }
}
