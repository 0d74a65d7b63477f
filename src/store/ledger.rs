//! What this process remembers of the sessions that it claims for: what was registered in each, which never changes, and
//! what each holds.
//!
//! What a session holds is exact only while this process is the last that claimed for it, which `sessions.claimer` says
//! under the session's lock. Otherwise it is counted again. A lease that ended elsewhere may still stand here: so a session
//! that seems full is counted, too.

use std::{
    collections::HashMap,
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

/// The memory.
#[derive(Debug)]
pub(super) struct Ledger {
    /// This process, as `sessions.claimer` names it.
    pub(super) claimer: Uuid,
    sessions: Mutex<HashMap<SessionId, Entry>>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { claimer: Uuid::now_v7(), sessions: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the sessions that are not known yet.
    pub(super) fn unknown(&self, sessions: impl Iterator<Item = SessionId>) -> Vec<Uuid> {
        let known = self.lock();
        sessions.filter(|session| !known.contains_key(session)).map(|session| session.0).collect()
    }

    pub(super) fn learn(&self, session: SessionId, registered: Registered) {
        let mut known = self.lock();
        if known.len() >= MAX {
            known.clear();
        }
        known.entry(session).or_insert(Entry { registered, held: None });
    }

    pub(super) fn registered(&self, session: SessionId) -> Option<Registered> {
        self.lock().get(&session).map(|entry| entry.registered.clone())
    }

    /// What it holds as far as this process knows, and how much it may.
    pub(super) fn held(&self, session: SessionId) -> Option<Vec<Claimed>> {
        self.lock().get(&session).and_then(|entry| entry.held.clone())
    }

    /// It was counted, under its lock, or claimed for.
    pub(super) fn set_held(&self, session: SessionId, held: Vec<Claimed>) {
        if let Some(entry) = self.lock().get_mut(&session) {
            entry.held = Some(held);
        }
    }

    /// A lease has ended.
    pub(super) fn ended(&self, session: SessionId, task_id: TaskId, lease: Lease) {
        if let Some(held) = self.lock().get_mut(&session).and_then(|entry| entry.held.as_mut()) {
            held.retain(|claimed| (claimed.task_id, claimed.lease) != (task_id, lease));
        }
    }

    /// Nobody knows what became of a commit that was about them: count again.
    pub(super) fn doubt(&self, sessions: impl Iterator<Item = SessionId>) {
        let mut known = self.lock();
        for session in sessions {
            if let Some(entry) = known.get_mut(&session) {
                entry.held = None;
            }
        }
    }

    /// Its sessions may have ended.
    pub(super) fn forget_agent(&self, agent_id: &str) {
        self.lock().retain(|_, entry| entry.registered.agent_id != agent_id);
    }

    /// It has ended.
    pub(super) fn forget(&self, session: SessionId) {
        self.lock().remove(&session);
    }
}
