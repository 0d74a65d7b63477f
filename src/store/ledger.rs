//! What this process remembers of the sessions that it claims for: what was registered in each, which never changes, and
//! what each holds.
//!
//! What a session holds is exact only while this process is the last that claimed for it, which `sessions.claimer` says
//! under the session's lock. Otherwise it is counted again. A lease that ended elsewhere may still stand here: so a session
//! that seems full is counted, too. And a commit may be heard of after the next claim has locked the session: so what two
//! transactions of this process do to one session at a time is not added up here, but counted.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use crate::model::{CapabilitySet, Lease, SessionId, TaskId};

/// Sessions remembered at most; then all are forgotten, and read again when they ask.
const MAX: usize = 100_000;

/// A lease that a session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) task_id: TaskId,
    pub(super) lease: Lease,
    /// The request that was answered with it.
    pub(super) claim_id: Option<Uuid>,
    /// The task is an issue of the forge.
    pub(super) of_issue: bool,
}

/// What was registered in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) agent_id: String,
    pub(super) capabilities: CapabilitySet,
    pub(super) max_concurrency: usize,
}

#[derive(Debug)]
struct Entry {
    registered: Registered,
    /// `None` when it has to be counted.
    held: Option<Vec<Claimed>>,
}

/// Transactions of this process that are about one session.
#[derive(Debug, Default)]
struct Visits {
    under_way: usize,
    /// Since there were several, until there are none: what it holds is counted, and not remembered.
    crowded: bool,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<SessionId, Entry>,
    visits: HashMap<SessionId, Visits>,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Ledger {
    /// This process, as `sessions.claimer` names it.
    pub(super) claimer: Uuid,
    state: Mutex<State>,
}

/// A transaction that may claim for some sessions, until its commit is heard of. Dropped before that, nobody knows what
/// became of it, so what they hold is counted the next time.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    ledger: &'a Ledger,
    sessions: HashSet<SessionId>,
    is_settled: bool,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { claimer: Uuid::now_v7(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the sessions that are not known yet.
    pub(super) fn unknown(&self, sessions: impl Iterator<Item = SessionId>) -> Vec<Uuid> {
        let state = self.lock();
        sessions.filter(|s| !state.known.contains_key(s)).map(|session| session.0).collect()
    }

    pub(super) fn learn(&self, session: SessionId, registered: Registered) {
        let mut state = self.lock();
        if state.known.len() >= MAX {
            state.known.clear();
        }
        state.known.entry(session).or_insert(Entry { registered, held: None });
    }

    pub(super) fn registered(&self, session: SessionId) -> Option<Registered> {
        self.lock().known.get(&session).map(|entry| entry.registered.clone())
    }

    /// What it holds as far as this process knows.
    pub(super) fn held(&self, session: SessionId) -> Option<Vec<Claimed>> {
        self.lock().known.get(&session).and_then(|entry| entry.held.clone())
    }

    /// A transaction begins that may claim for these. To be said before it locks them.
    pub(super) fn visit(&self, sessions: impl Iterator<Item = SessionId>) -> Visit<'_> {
        let sessions: HashSet<SessionId> = sessions.collect();
        let State { known, visits } = &mut *self.lock();
        for session in &sessions {
            let visits = visits.entry(*session).or_default();
            visits.under_way += 1;
            if visits.under_way > 1 {
                visits.crowded = true;
                if let Some(entry) = known.get_mut(session) {
                    entry.held = None;
                }
            }
        }
        Visit { ledger: self, sessions, is_settled: false }
    }

    /// True when another transaction of this process is about this session, too, or was when one under way began.
    pub(super) fn is_crowded(&self, session: SessionId) -> bool {
        self.lock().visits.get(&session).is_some_and(|visits| visits.crowded)
    }

    /// A lease has ended.
    pub(super) fn ended(&self, session: SessionId, task_id: TaskId, lease: Lease) {
        let mut state = self.lock();
        if let Some(held) = state.known.get_mut(&session).and_then(|entry| entry.held.as_mut()) {
            held.retain(|claimed| (claimed.task_id, claimed.lease) != (task_id, lease));
        }
    }

    /// Its sessions may have ended.
    pub(super) fn forget_agent(&self, agent_id: &str) {
        self.lock().known.retain(|_, entry| entry.registered.agent_id != agent_id);
    }

    /// It has ended.
    pub(super) fn forget(&self, session: SessionId) {
        self.lock().known.remove(&session);
    }
}

impl Visit<'_> {
    /// It is over; this is what each session that it locked holds now.
    pub(super) fn settle(mut self, held: HashMap<SessionId, Vec<Claimed>>) {
        self.is_settled = true;
        let State { known, visits } = &mut *self.ledger.lock();
        for (session, held) in held {
            let is_alone = visits.get(&session).is_some_and(|visits| !visits.crowded);
            if let Some(entry) = known.get_mut(&session).filter(|_| is_alone) {
                entry.held = Some(held);
            }
        }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let State { known, visits } = &mut *self.ledger.lock();
        for session in &self.sessions {
            if let Some(entry) = known.get_mut(session).filter(|_| !self.is_settled) {
                entry.held = None;
            }
            if let Some(visiting) = visits.get_mut(session) {
                visiting.under_way -= 1;
                if visiting.under_way == 0 {
                    visits.remove(session);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(n: u128) -> Claimed {
        Claimed {
            task_id: TaskId(Uuid::from_u128(n)),
            lease: Lease(1),
            claim_id: None,
            of_issue: false,
        }
    }

    #[test]
    fn only_who_was_alone_with_a_session_says_what_it_holds() {
        let ledger = Ledger::new();
        let session = SessionId(Uuid::from_u128(1));
        let registered = Registered {
            agent_id: "a".into(),
            capabilities: CapabilitySet::default(),
            max_concurrency: 2,
        };
        ledger.learn(session, registered);
        let visit = || ledger.visit([session, session].into_iter());
        let held = |tasks: &[Claimed]| HashMap::from([(session, tasks.to_vec())]);
        visit().settle(held(&[claimed(1)]));
        assert_eq!(ledger.held(session), Some(vec![claimed(1)]));

        let (one, two) = (visit(), visit());
        assert_eq!(ledger.held(session), None, "the other may have taken something by now");
        two.settle(held(&[claimed(1), claimed(2)]));
        one.settle(held(&[claimed(1)]));
        assert_eq!(ledger.held(session), None, "heard of in another order than done");

        visit().settle(held(&[claimed(1), claimed(2)]));
        assert_eq!(ledger.held(session).map(|held| held.len()), Some(2));
        drop(visit());
        assert_eq!(ledger.held(session), None, "nobody knows what became of it");
        assert!(ledger.lock().visits.is_empty());
    }
}
