//! Requests in flight: all that are worked on, heartbeats beside them, and those of each agent. No limit of a rate.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::model::SessionId;

/// The counts of one replica.
#[derive(Debug)]
pub(super) struct Limits {
    requests: Arc<Semaphore>,
    /// Counted apart: agents whose heartbeats found no room would be taken for dead, and their work done again.
    heartbeats: Arc<Semaphore>,
    per_agent: usize,
    agents: Mutex<HashMap<SessionId, usize>>,
}

/// One request of an agent; given back when dropped.
#[derive(Debug)]
pub(super) struct AgentPermit {
    limits: Arc<Limits>,
    session: SessionId,
}

impl Limits {
    pub(super) fn new(requests: usize, per_agent: usize) -> Self {
        let room = || Arc::new(Semaphore::new(requests));
        Self { requests: room(), heartbeats: room(), per_agent, agents: Mutex::default() }
    }

    /// One more request to work on; 503 when there are as many as may be.
    pub(super) fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        admit(&self.requests)
    }

    /// The same for a heartbeat.
    pub(super) fn admit_heartbeat(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        admit(&self.heartbeats)
    }

    /// One more request of this agent; 429 when it has as many as it may.
    pub(super) fn admit_agent(
        self: &Arc<Self>,
        session: SessionId,
    ) -> Result<AgentPermit, ApiError> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let count = agents.entry(session).or_default();
        if *count >= self.per_agent {
            return Err(ApiError::too_many_requests(self.per_agent));
        }
        *count += 1;
        drop(agents);
        Ok(AgentPermit { limits: Arc::clone(self), session })
    }
}

fn admit(room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(room).try_acquire_owned().map_err(|_| ApiError::overloaded())
}

impl Drop for AgentPermit {
    fn drop(&mut self) {
        let mut agents = self.limits.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = agents.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                agents.remove(&self.session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_has_its_own_count_and_gives_back() {
        let limits = Arc::new(Limits::new(1, 2));
        let [one, two] = [1, 2].map(|n| SessionId(uuid::Uuid::from_u128(n)));
        let first = limits.admit_agent(one).unwrap();
        let second = limits.admit_agent(one).unwrap();
        assert!(limits.admit_agent(one).is_err(), "two are its limit");
        assert!(limits.admit_agent(two).is_ok(), "another agent has another count");
        drop(first);
        let again = limits.admit_agent(one).unwrap();
        drop((second, again));
        assert!(limits.agents.lock().unwrap().is_empty(), "nobody is counted who is not there");
    }

    #[test]
    fn all_requests_but_heartbeats_share_one_count() {
        let limits = Limits::new(1, 1);
        let only = limits.admit().unwrap();
        assert!(limits.admit().is_err());
        let _beat = limits.admit_heartbeat().unwrap();
        assert!(limits.admit_heartbeat().is_err());
        drop(only);
        assert!(limits.admit().is_ok());
    }
}
