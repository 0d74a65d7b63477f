//! What agents do to the queue: leases end and tasks are claimed, for all that ask at once, in one transaction.
//!
//! The first statement locks the sessions that want work; later ones, whose snapshots are younger than those locks, say
//! what they hold, so that a limit is exact over all replicas. Candidates are read without locks, matched in memory, and
//! only what is going to be taken is locked. Only what the last statement returns has been taken. What does not need
//! another's answer is sent together.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    EndLease, Ended, Store, StoreError,
    asking::{Asking, Assigned, Candidates},
    connection::{commit, open},
    ending::Ending,
    error::retry,
    journal::Journal,
    ledger::{Claimed, Registered},
    rows::{self, get},
    statement::{
        CLAIM_PULL_1_LOCK, CLAIM_PULL_2_HELD, CLAIM_PULL_2_PINNED, CLAIM_PULL_2_READY,
        CLAIM_PULL_3_TAKE, CLAIM_PULL_4_SWITCH, COMPLETE_LEASES, END_LEASES, GET_TASKS,
    },
    taking::Taking,
};
use crate::model::{CapabilitySet, Lease, SessionId, Task, TaskId};

/// An agent that waits for work.
#[derive(Debug, Clone)]
pub struct Waiter {
    /// The session under which it asks.
    pub session: SessionId,
    /// What it asks with, if less than what it registered.
    pub capabilities: Option<CapabilitySet>,
    /// How many tasks it takes at most.
    pub max_tasks: usize,
    /// Names the request: the same one again is answered with the same tasks while they are leased.
    pub claim_id: Uuid,
    /// The agent named the request, so it may have been answered before.
    pub repeatable: bool,
    /// When it asked: its last sign of life that is certain. It may have died since.
    pub asked: Instant,
}

impl Waiter {
    /// One that takes one task with all that it registered.
    pub fn one(session: SessionId) -> Self {
        Self {
            session,
            capabilities: None,
            max_tasks: 1,
            claim_id: Uuid::now_v7(),
            repeatable: false,
            asked: Instant::now(),
        }
    }

    /// What it offers of what was registered.
    pub(super) fn offers(&self, registered: &CapabilitySet) -> CapabilitySet {
        match &self.capabilities {
            Some(asked) => asked.intersection(registered),
            None => registered.clone(),
        }
    }

    /// True when who holds this has room, and got nothing under this very request: that may have ended elsewhere.
    pub(super) fn has_room(&self, held: &[Claimed], registered: &Registered) -> bool {
        held.len() < registered.max_concurrency
            && held.iter().all(|claimed| claimed.claim_id != Some(self.claim_id))
    }
}

/// What came of a claim for waiting agents.
#[derive(Debug, Default)]
pub struct PullClaims {
    /// `(place in the request, task, lease)`.
    pub claimed: Vec<(usize, TaskId, Lease)>,
    /// The tasks, as they are now.
    pub tasks: HashMap<TaskId, Task>,
    /// Places of those whose request had been answered before, with the same tasks.
    pub repeated: Vec<usize>,
    /// Places of those whose session has ended.
    pub ended: Vec<usize>,
    /// Places of those that may not take anything now: they drain, or hold all that they may.
    pub barred: Vec<usize>,
    /// True when somebody went without although there may be something: scan again soon.
    pub shortfall: bool,
}

/// What came of leases that end and agents that want work.
#[derive(Debug, Default)]
pub struct Worked {
    /// What came of each end, in order.
    pub ended: Vec<Ended>,
    /// What came of each waiter, and the tasks of both.
    pub claims: PullClaims,
}

impl Store {
    /// Claims for agents that wait, first come first served; takes `created` tasks in mode `http_pull` or `undecided`, and
    /// those pinned to the agent, pinned first. `in_full` looks everywhere, not only where something may be by what this
    /// process remembers. Without anything to take, nothing is locked.
    pub async fn claim_for_agents(
        &self,
        waiters: &[Waiter],
        in_full: bool,
    ) -> Result<PullClaims, StoreError> {
        let mut unheard = false;
        retry!(self.claim_once(waiters, in_full, &mut unheard).await)
    }

    /// `unheard` is true once the commit of an earlier try was not heard of: any of them may have something already.
    async fn claim_once(
        &self,
        waiters: &[Waiter],
        in_full: bool,
        unheard: &mut bool,
    ) -> Result<PullClaims, StoreError> {
        let client = self.client().await?;
        let asking = self.asking(&client, waiters).await?;
        if in_full || !self.ready().knows_lanes() {
            self.read_lanes(&client).await?;
        }
        let mut candidates = self.candidates(&client, &asking, in_full, 0, 0).await?;
        candidates.pass_over();
        let blind = candidates.is_blind();
        drop(client);
        // Those that would get something, and those that may have something already.
        let mut rooms = waiters.iter().map(|w| (w.session, usize::MAX)).collect();
        let Assigned { pairs, passed_over } = asking.assign(
            waiters,
            &candidates,
            &mut rooms,
            &HashSet::new(),
            &mut candidates.reading.taken(),
            0,
        );
        let fed: HashSet<usize> = pairs.iter().map(|pair| pair.place).collect();
        let (places, chosen): (Vec<usize>, Vec<Waiter>) = waiters
            .iter()
            .enumerate()
            .filter(|(place, waiter)| {
                let may_have = waiter.repeatable || *unheard;
                fed.contains(place) || may_have || asking.waiters[*place].is_none()
            })
            .map(|(place, waiter)| (place, waiter.clone()))
            .unzip();
        if chosen.is_empty() {
            return Ok(PullClaims { shortfall: blind || passed_over, ..PullClaims::default() });
        }
        let promised = pairs.len();
        let asking = asking.only(&places, chosen.iter().map(|waiter| waiter.max_tasks).sum());
        let looked = Some((asking, candidates));
        let mut claims =
            self.work_once(&[], Duration::ZERO, &chosen, looked, unheard).await?.claims;
        claims.at_places(&places);
        // Who was passed over for a candidate that went to nobody: the look beforehand does not know who has how much room.
        let taken = claims.claimed.len() - claims.repeated.len();
        claims.shortfall |=
            passed_over || (blind || taken < promised) && places.len() < waiters.len();
        Ok(claims)
    }

    /// Leases end, and agents get work, in one transaction; a task may be named once. `backoff` is the wait before the first
    /// retry. Answers with the tasks of both.
    pub async fn work(
        &self,
        ends: &[EndLease],
        backoff: Duration,
        waiters: &[Waiter],
    ) -> Result<Worked, StoreError> {
        let mut unheard = false;
        retry!(self.work_or_next(ends, backoff, waiters, &mut unheard).await)
    }

    /// `looked` is what was read of these very waiters, and for them. `unheard` is true once the commit of an earlier try was not
    /// heard of.
    pub(super) async fn work_once(
        &self,
        ends: &[EndLease],
        backoff: Duration,
        waiters: &[Waiter],
        looked: Option<(Asking, Candidates)>,
        unheard: &mut bool,
    ) -> Result<Worked, StoreError> {
        let visit = self.ledger().visit(waiters.iter().map(|w| w.session));
        // On the heap: large, and once for all that ask.
        let working = Box::pin(self.work_in_one(ends, backoff, waiters, looked, unheard));
        let (worked, held) = working.await.inspect_err(|_| {
            if !waiters.is_empty() {
                // What it chose may be ready still, and others have read past it.
                self.ready().forget();
            }
        })?;
        visit.settle(held);
        self.remember_ends(ends, &worked.ended);
        Ok(worked)
    }

    /// Answers beside what came of it with what each session that was locked holds then.
    async fn work_in_one(
        &self,
        ends: &[EndLease],
        backoff: Duration,
        waiters: &[Waiter],
        looked: Option<(Asking, Candidates)>,
        unheard: &mut bool,
    ) -> Result<(Worked, HashMap<SessionId, Vec<Claimed>>), StoreError> {
        let mut client = self.client().await?;
        for statement in [
            CLAIM_PULL_1_LOCK,
            COMPLETE_LEASES,
            END_LEASES,
            CLAIM_PULL_2_HELD,
            CLAIM_PULL_2_PINNED,
            CLAIM_PULL_2_READY,
            CLAIM_PULL_3_TAKE,
            CLAIM_PULL_4_SWITCH,
            GET_TASKS,
        ] {
            statement.prepare(&client).await?;
        }
        let (asking, candidates) = match looked {
            Some((asking, candidates)) => (asking, Some(candidates)),
            None => (self.asking(&client, waiters).await?, None),
        };
        if !waiters.is_empty() && !self.ready().knows_lanes() {
            self.read_lanes(&client).await?;
        }
        let mut sessions: Vec<Uuid> = waiters.iter().map(|w| w.session.0).collect();
        sessions.sort_unstable();
        sessions.dedup();
        let ending = Ending::new(ends, backoff);

        let mut chosen = self.crowd().chosen();
        let mut journal = Journal::default();
        let tx = open(&mut client);
        // One round trip, in this order: sessions are locked first.
        let (_, locked, ended, mut candidates) = tokio::try_join!(
            biased;
            tx.begin_planned(),
            async {
                if sessions.is_empty() { Ok(Vec::new()) } else { CLAIM_PULL_1_LOCK.rows(&tx, &[&sessions]).await }
            },
            ending.rows(&tx),
            async {
                match candidates {
                    Some(candidates) => Ok(candidates),
                    None => self.candidates(&tx, &asking, false, 0, 0).await,
                }
            },
        )?;
        let outcomes = ending.outcomes(&tx, &ended, *unheard, &mut journal).await?;
        let mut worked = Worked { ended: outcomes, ..Worked::default() };
        // A newer state of an issue may have been applied since.
        let is_current = |row: &&Row| get::<&str>(row, "source") != "forgejo";
        let shown: Vec<&Row> =
            ended.iter().filter(is_current).filter(|row| rows::shows_task(row)).collect();
        let seen: HashSet<Uuid> = shown.iter().map(|row| get(row, "task_id")).collect();
        let unseen = ends.iter().map(|end| end.held.task_id.0);
        let unseen: Vec<Uuid> = unseen.filter(|id| !seen.contains(id)).collect();
        if !unseen.is_empty() {
            show(&mut worked.claims.tasks, &GET_TASKS.rows(&tx, &[&unseen]).await?)?;
        }
        // The rows of what has ended are read while the database is at work on the claim.
        let (held, read) = tokio::try_join!(
            biased;
            async {
                if waiters.is_empty() {
                    return Ok(HashMap::new());
                }
                let taking = Taking { waiters, asking: &asking, ends, locked: &locked };
                let claim = (&mut candidates, &mut chosen, &mut *unheard);
                self.take(&tx, taking, claim, &mut worked, &mut journal).await
            },
            async {
                // What was asked is sent first.
                tokio::task::yield_now().await;
                let read = shown.iter().filter_map(|row| rows::shown_task(row).transpose());
                read.collect::<Result<Vec<Task>, StoreError>>()
            },
        )?;
        // They have ended for good, so none of them was claimed.
        worked.claims.tasks.extend(read.into_iter().map(|task| (task.task_id, task)));
        if !tx.is_over() && (!ends.is_empty() || !worked.claims.claimed.is_empty()) {
            *unheard = true;
            commit(tx).await?;
        }
        journal.write();
        let taken = worked.claims.claimed.iter().map(|(_, task_id, _)| *task_id);
        self.have_taken(&candidates, &chosen, taken);
        Ok((worked, held))
    }
}

/// Adds the tasks of these rows.
pub(super) fn show(tasks: &mut HashMap<TaskId, Task>, rows: &[Row]) -> Result<(), StoreError> {
    for row in rows {
        let task = rows::task(row, 0)?;
        tasks.insert(task.task_id, task);
    }
    Ok(())
}
