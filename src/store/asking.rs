//! Who asks for work, what there may be for them, and who of them gets what: all that a claim needs to know before it locks
//! a task.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{
    Store, StoreError, Waiter,
    claims::{begins_at, depth},
    connection::GenericClient,
    crowd::{Chosen, Reading, Share},
    ledger::Registered,
    ready::{Candidate, Found, ReadyRow},
    rows::get,
    statement::{CLAIM_PULL_2_PINNED, CLAIM_PULL_2_READY, DESCRIBE_SESSIONS},
};
use crate::model::{CapabilitySet, SessionId, TaskId};

/// At most this many tasks are taken in one transaction.
pub(super) const TASKS: usize = 500;

/// What may be claimed by whom, read without locks.
#[derive(Debug)]
pub(super) struct Candidates {
    pub(super) reading: Reading,
    share: Share,
    found: Found,
    by_set: Vec<Vec<Candidate>>,
    pinned: HashMap<String, Vec<TaskId>>,
    /// So many of the first ones are about to be taken by others of this process.
    passed: usize,
}

impl Candidates {
    /// To be said right before they are chosen from.
    pub(super) fn pass_over(&mut self) {
        self.passed = self.reading.passed();
    }

    /// Only pins were looked for: the lanes were forgotten while they were read. To be looked at again.
    pub(super) fn is_blind(&self) -> bool {
        self.found.ranges.blind
    }
}

/// Who asks, by what was registered: distinct sets of capabilities, and which one each waiter has.
pub(super) struct Asking {
    sets: Vec<CapabilitySet>,
    /// For each waiter its set, and what its session registered; `None` for a session that is unknown.
    pub(super) waiters: Vec<Option<(usize, Registered)>>,
    wanted: usize,
}

/// A task for a waiter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) place: usize,
    pub(super) task_id: TaskId,
    /// Where it was found; `None` for a pin.
    pub(super) lane_id: Option<i64>,
}

/// Who gets what.
#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) pairs: Vec<Pair>,
    /// Somebody got nothing, and others have chosen what there was for it: they may not come to take it.
    pub(super) passed_over: bool,
}

impl Asking {
    /// The same of those in these places: their sets keep the numbers by which candidates were read.
    pub(super) fn only(self, places: &[usize], wanted: usize) -> Self {
        let waiters = places.iter().map(|place| self.waiters[*place].clone()).collect();
        Self { waiters, wanted: wanted.min(TASKS), ..self }
    }

    fn agents(&self) -> Vec<&str> {
        let mut agents: Vec<&str> =
            self.waiters.iter().flatten().map(|(_, r)| r.agent_id.as_str()).collect();
        agents.sort_unstable();
        agents.dedup();
        agents
    }

    /// Gives each waiter what it may have: `rooms` says how much each session has room for, `gone` what has been given or
    /// lost before. First come, first served, pins first; in a later `round` further down, see [`begins_at`].
    pub(super) fn assign(
        &self,
        waiters: &[Waiter],
        candidates: &Candidates,
        rooms: &mut HashMap<SessionId, usize>,
        served: &HashSet<usize>,
        gone: &mut HashSet<TaskId>,
        round: u32,
    ) -> Assigned {
        let mut wanted = vec![0; self.sets.len()];
        for (place, (waiter, asking)) in waiters.iter().zip(&self.waiters).enumerate() {
            if let Some((set, _)) = asking
                && !served.contains(&place)
            {
                let room = rooms.get(&waiter.session).copied().unwrap_or(0);
                wanted[*set] += waiter.max_tasks.min(room);
            }
        }
        let mut queues: Vec<_> = candidates
            .by_set
            .iter()
            .zip(wanted)
            .map(|(all, wanted)| {
                let mut left: Vec<Candidate> =
                    all.iter().filter(|c| !gone.contains(&c.task_id)).copied().collect();
                candidates.share.prefer(&mut left);
                let skip = begins_at(round, candidates.passed, left.len(), wanted);
                let is_whole = left.len() == all.len();
                (left.into_iter().skip(skip), is_whole)
            })
            .collect();
        let mut assigned = Assigned { pairs: Vec::new(), passed_over: false };
        for (place, (waiter, asking)) in waiters.iter().zip(&self.waiters).enumerate() {
            let Some((set, registered)) = asking else { continue };
            let Some(room) = rooms.get_mut(&waiter.session) else { continue };
            if served.contains(&place) {
                continue;
            }
            let pinned = candidates.pinned.get(&registered.agent_id);
            let pinned = pinned.into_iter().flatten().map(|task_id| (*task_id, None));
            let Some((ready, is_whole)) = queues.get_mut(*set) else { continue };
            let ready = ready.map(|c| (c.task_id, Some(c.lane_id)));
            let most = waiter.max_tasks.min(*room).min(TASKS - assigned.pairs.len());
            let mut left = most;
            let mut offered = pinned.chain(ready);
            while left > 0
                && let Some((task_id, lane_id)) = offered.next()
            {
                if gone.insert(task_id) {
                    assigned.pairs.push(Pair { place, task_id, lane_id });
                    *room -= 1;
                    left -= 1;
                }
            }
            assigned.passed_over |= most > 0 && left == most && !*is_whole;
        }
        assigned
    }
}

impl Store {
    /// True when something may be ready for who offers this.
    pub fn may_have_ready(&self, set: &CapabilitySet) -> bool {
        self.ready().may_have(set)
    }

    /// What is known of this agent's sessions may not be true any more.
    pub fn forget_agent(&self, agent_id: &str) {
        self.ledger().forget_agent(agent_id);
    }

    /// What a waiter asks with; `None` while nothing is known of its session.
    pub fn effective(&self, waiter: &Waiter) -> Option<CapabilitySet> {
        Some(waiter.offers(&self.ledger().registered(waiter.session)?.capabilities))
    }

    /// Who asks; reads what is not known of their sessions.
    pub(super) async fn asking<C: GenericClient>(
        &self,
        client: &C,
        waiters: &[Waiter],
    ) -> Result<Asking, StoreError> {
        let unknown = self.ledger().unknown(waiters.iter().map(|w| w.session));
        if !unknown.is_empty() {
            for row in DESCRIBE_SESSIONS.rows(client, &[&unknown]).await? {
                let registered = Registered {
                    agent_id: get(&row, "agent_id"),
                    capabilities: CapabilitySet::from(get::<Vec<String>>(&row, "capabilities")),
                    max_concurrency: usize::try_from(get::<i32>(&row, "max_concurrency"))
                        .unwrap_or(1),
                };
                self.ledger().learn(SessionId(get::<Uuid>(&row, "session_id")), registered);
            }
        }
        let mut sets: Vec<CapabilitySet> = Vec::new();
        let numbered = waiters
            .iter()
            .map(|waiter| {
                let registered = self.ledger().registered(waiter.session)?;
                let set = waiter.offers(&registered.capabilities);
                let number = sets.iter().position(|s| *s == set).unwrap_or_else(|| {
                    sets.push(set);
                    sets.len() - 1
                });
                Some((number, registered))
            })
            .collect();
        let wanted = waiters.iter().map(|w| w.max_tasks).sum::<usize>().min(TASKS);
        Ok(Asking { sets, waiters: numbered, wanted })
    }

    /// Reads what may be claimed by those who ask, deeper when `gone` rows were lost before.
    pub(super) async fn candidates<C: GenericClient>(
        &self,
        client: &C,
        asking: &Asking,
        in_full: bool,
        gone: usize,
        round: u32,
    ) -> Result<Candidates, StoreError> {
        let share = self.crowd().share();
        let (reading, others) = self.crowd().read(asking.wanted);
        // What others have chosen here is of the same part of the queue.
        let wanted = share.so_deep(asking.wanted + others);
        let depth = depth(i64::try_from(wanted).unwrap_or(i64::MAX), gone, round);
        let sets: Vec<&CapabilitySet> = asking.sets.iter().collect();
        let ranges = self.ready().ranges(&sets, in_full);
        let agents = asking.agents();
        let (pinned, ready) = tokio::try_join!(
            biased;
            async {
                if agents.is_empty() { Ok(Vec::new()) } else { CLAIM_PULL_2_PINNED.rows(client, &[&agents, &depth]).await }
            },
            async {
                if ranges.is_empty() {
                    return Ok(Vec::new());
                }
                CLAIM_PULL_2_READY
                    .rows(client, &[&ranges.sets, &ranges.lanes, &ranges.priorities, &ranges.lows, &depth])
                    .await
            },
        )?;
        let found = Found { ranges, rows: ready.iter().map(ReadyRow::from).collect(), depth };
        self.ready().found(&found, &reading.taken());
        let by_set = found.by_set(sets.len());
        let mut candidates =
            Candidates { reading, share, found, by_set, pinned: HashMap::new(), passed: 0 };
        for row in &pinned {
            let task_id = TaskId(get::<Uuid>(row, "task_id"));
            candidates.pinned.entry(get(row, "pinned_to")).or_default().push(task_id);
        }
        Ok(candidates)
    }

    /// These were taken in the end. Where nothing is left of the candidates, nothing is looked for any more.
    pub(super) fn have_taken(
        &self,
        candidates: &Candidates,
        chosen: &Chosen,
        taken: impl Iterator<Item = TaskId>,
    ) {
        self.ready().found(&candidates.found, &chosen.gone(&candidates.reading, taken));
    }
}
