//! Who calls: what agents' credentials were found to mean is remembered for seconds, so that a call of an agent costs no
//! query. Whatever is remembered is looked at again, all of it in one query.
//!
//! A write is fenced by session in SQL, whatever is remembered here. Reads of an agent whose session has ended or whose
//! token was revoked are refused at once on the replica that did it, on the others when they hear of it, and after
//! [`TRUSTED`] in any case.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Replica;
use crate::{
    model::SessionId,
    store::{AgentSession, CallerKey, StoreError, TokenOwner},
    telemetry::error_chain,
};

/// How long an answer of the database is believed.
const TRUSTED: Duration = Duration::from_secs(4);
/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);
/// A caller that has not called for so long is forgotten.
const RESTED: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Known {
    owner: TokenOwner,
    /// When the query began that said so.
    as_of: Instant,
    called: Instant,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<CallerKey, Known>,
    /// Grows when something is forgotten: what was read before that is not remembered.
    forgotten: u64,
}

/// What is remembered of the callers.
#[derive(Debug, Default)]
pub struct Callers {
    state: Mutex<State>,
}

impl Callers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self, key: &CallerKey) -> Option<TokenOwner> {
        let mut state = self.lock();
        let known = state.known.get_mut(key)?;
        if known.as_of.elapsed() > TRUSTED {
            return None;
        }
        known.called = Instant::now();
        Some(known.owner.clone())
    }

    fn remember(&self, key: CallerKey, owner: &TokenOwner, as_of: Instant, forgotten: u64) {
        let mut state = self.lock();
        if state.forgotten == forgotten {
            let known = Known { owner: owner.clone(), as_of, called: Instant::now() };
            state.known.insert(key, known);
        }
    }

    /// Its credentials mean something else now.
    pub(super) fn forget(&self, agent_id: &str) {
        let mut state = self.lock();
        state.forgotten += 1;
        state.known.retain(|_, known| known.owner.agent.agent_id.as_str() != agent_id);
    }

    pub(super) fn forget_all(&self) {
        let mut state = self.lock();
        state.forgotten += 1;
        state.known.clear();
    }

    /// Whom to look at again.
    fn keys(&self) -> (u64, Vec<CallerKey>) {
        let mut state = self.lock();
        state.known.retain(|_, known| known.called.elapsed() < RESTED);
        (state.forgotten, state.known.keys().cloned().collect())
    }

    /// Takes what was found of those who were asked for. Returns sessions that have ended or were replaced.
    fn update(
        &self,
        asked: &[CallerKey],
        mut found: HashMap<CallerKey, TokenOwner>,
        as_of: Instant,
        forgotten: u64,
    ) -> Vec<SessionId> {
        let mut state = self.lock();
        if state.forgotten != forgotten {
            return Vec::new();
        }
        let asked: HashSet<&CallerKey> = asked.iter().collect();
        let mut ended = Vec::new();
        state.known.retain(|key, known| {
            // Who was not asked for had just called for the first time: that it was not found says nothing.
            if known.as_of > as_of || !asked.contains(key) {
                return true;
            }
            let before = known.owner.agent.session;
            let Some(owner) = found.remove(key) else {
                ended.push(before);
                return false;
            };
            if owner.agent.session != before || !owner.agent.live {
                ended.push(before);
            }
            known.owner = owner;
            known.as_of = as_of;
            true
        });
        ended
    }
}

impl Replica {
    /// Whose token this digest is of.
    pub async fn find_owner(&self, digest: [u8; 32]) -> Result<Option<TokenOwner>, StoreError> {
        let key = CallerKey::Token(digest);
        if let Some(owner) = self.callers.recall(&key) {
            return Ok(Some(owner));
        }
        let (as_of, forgotten) = (Instant::now(), self.callers.lock().forgotten);
        let owner = self.store.find_agent_by_token(&digest).await?;
        if let Some(owner) = &owner {
            self.callers.remember(key, owner, as_of, forgotten);
        }
        Ok(owner)
    }

    /// The newest session of an agent, for who may act for any.
    pub async fn find_session(&self, agent_id: &str) -> Result<Option<AgentSession>, StoreError> {
        let key = CallerKey::Agent(agent_id.to_owned());
        if let Some(owner) = self.callers.recall(&key) {
            return Ok(Some(owner.agent));
        }
        let (as_of, forgotten) = (Instant::now(), self.callers.lock().forgotten);
        let agent = self.store.find_agent_session(agent_id).await?;
        if let Some(agent) = &agent {
            let owner = TokenOwner { agent: agent.clone(), current: true };
            self.callers.remember(key, &owner, as_of, forgotten);
        }
        Ok(agent)
    }
}

/// The loop that looks again at all that is remembered.
pub(super) async fn run(replica: &Arc<Replica>) {
    while !replica.shutdown.sleep(PERIOD.mul_f64(rand::random_range(0.8..1.2))).await {
        let (forgotten, keys) = replica.callers.keys();
        if keys.is_empty() {
            continue;
        }
        let as_of = Instant::now();
        match replica.store.check_callers(&keys).await {
            Ok(found) => {
                let ended = replica.callers.update(&keys, found, as_of, forgotten);
                replica.matchmaker.ended(&ended);
            }
            Err(error) => {
                tracing::debug!(error = %error_chain(&error), "callers could not be looked at again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AgentId;

    fn owner(session: u128, live: bool) -> TokenOwner {
        let agent = AgentSession {
            agent_id: AgentId::parse("a").unwrap(),
            session: SessionId(uuid::Uuid::from_u128(session)),
            live,
        };
        TokenOwner { agent, current: true }
    }

    #[test]
    fn what_was_read_before_it_was_forgotten_is_not_remembered() {
        let callers = Callers::default();
        let key = CallerKey::Token([1; 32]);
        let as_of = Instant::now();
        callers.remember(key.clone(), &owner(1, true), as_of, 0);
        assert_eq!(callers.recall(&key), Some(owner(1, true)));
        let (before, keys) = callers.keys();
        callers.forget("a");
        assert_eq!(callers.recall(&key), None);
        // Both had read before.
        callers.remember(key.clone(), &owner(1, true), as_of, before);
        let found = keys.iter().map(|key| (key.clone(), owner(1, true))).collect();
        callers.update(&keys, found, as_of, before);
        assert_eq!(callers.recall(&key), None);
    }

    #[test]
    fn a_look_finds_sessions_that_have_ended_and_tokens_that_are_gone() {
        let callers = Callers::default();
        let keys = [1, 2, 3, 4].map(|n| CallerKey::Token([n; 32]));
        let before = Instant::now();
        for (session, key) in (1..).zip(&keys) {
            callers.remember(key.clone(), &owner(session, true), before, 0);
        }
        let found = HashMap::from([
            (keys[0].clone(), owner(1, true)),
            (keys[1].clone(), owner(2, false)),
            (keys[2].clone(), owner(9, true)),
        ]);
        let mut ended = callers.update(&keys, found, Instant::now(), 0);
        ended.sort_unstable();
        assert_eq!(ended, [2, 3, 4].map(|n| SessionId(uuid::Uuid::from_u128(n))));
        assert_eq!(callers.recall(&keys[2]), Some(owner(9, true)));
        assert_eq!(callers.recall(&keys[3]), None);
    }

    #[test]
    fn who_called_first_while_others_were_looked_at_has_not_ended() {
        let callers = Callers::default();
        let key = CallerKey::Token([1; 32]);
        // Its own query began before the look, and was answered during it.
        let as_of = Instant::now();
        let (forgotten, keys) = callers.keys();
        let looked = Instant::now();
        callers.remember(key.clone(), &owner(1, true), as_of, forgotten);
        assert_eq!(callers.update(&keys, HashMap::new(), looked, forgotten), []);
        assert_eq!(callers.recall(&key), Some(owner(1, true)));
    }

    #[test]
    fn an_old_answer_is_not_believed() {
        let callers = Callers::default();
        let key = CallerKey::Agent("a".to_owned());
        let Some(long_ago) = Instant::now().checked_sub(TRUSTED * 2) else { return };
        callers.remember(key.clone(), &owner(1, true), long_ago, 0);
        assert_eq!(callers.recall(&key), None);
    }
}
