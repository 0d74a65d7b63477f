//! Heartbeats of agents, gathered and written in batches: one narrow row a session, never one a task.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::Replica;
use crate::{
    model::SessionId,
    store::{AgentBeat, Heard, Store},
    telemetry::error_chain,
};

/// How often mere signs of life are written.
const FLUSH: Duration = Duration::from_millis(500);
/// Heartbeats in one batch.
const BATCH: usize = 256;

/// What agents are heard of since the last batch.
#[derive(Debug, Default)]
pub struct Heartbeats {
    /// Signs of life; any authenticated call of an agent is one.
    heard: Mutex<BTreeSet<SessionId>>,
    /// Heartbeats that wait for their answers, in the order of their arrival.
    waiting: Mutex<Vec<Waiting>>,
    /// Whoever has it writes for all that wait.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Waiting {
    beat: AgentBeat,
    reply: oneshot::Sender<Answer>,
}

/// What came of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The session lives; what its agent is to be told.
    Heard(Heard),
    /// It has ended.
    SessionEnded,
    /// The database is away. Whether the heartbeat counted is not known.
    Unavailable,
}

impl Heartbeats {
    /// This session's agent has just called.
    pub fn touch(&self, session: SessionId) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(session);
    }

    fn take_heard(&self) -> Vec<SessionId> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .collect()
    }

    /// Writes a heartbeat, together with those that arrived meanwhile.
    async fn beat(&self, store: &Store, beat: AgentBeat) -> Answer {
        let (reply, mut answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Waiting { beat, reply });
        loop {
            // While this one waits for its turn, others may have written for it.
            let _turn = self.turn.lock().await;
            match answer.try_recv() {
                Ok(answer) => return answer,
                Err(oneshot::error::TryRecvError::Closed) => return Answer::Unavailable,
                Err(oneshot::error::TryRecvError::Empty) => self.write(store).await,
            }
        }
    }

    /// One batch: of each session the first heartbeat that waits; the next one of the same session waits its turn.
    async fn write(&self, store: &Store) {
        let batch = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sessions = BTreeSet::new();
            let (now, later): (Vec<Waiting>, Vec<Waiting>) = std::mem::take(&mut *waiting)
                .into_iter()
                .partition(|w| sessions.len() < BATCH && sessions.insert(w.beat.session));
            *waiting = later;
            now
        };
        let (beats, replies): (Vec<AgentBeat>, Vec<oneshot::Sender<Answer>>) =
            batch.into_iter().map(|w| (w.beat, w.reply)).unzip();
        let answers = match store.beat_agents(&beats).await {
            Ok(heard) => heard
                .into_iter()
                .map(|heard| heard.map_or(Answer::SessionEnded, Answer::Heard))
                .collect(),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), agents = beats.len(), "heartbeats of agents were not stored");
                vec![Answer::Unavailable; beats.len()]
            }
        };
        for (reply, answer) in replies.into_iter().zip(answers) {
            let _ = reply.send(answer);
        }
    }
}

impl Replica {
    /// An agent's heartbeat.
    pub async fn beat_agent(&self, beat: AgentBeat) -> Answer {
        self.heartbeats.beat(&self.signs, beat).await
    }
}

/// The loop: writes signs of life.
pub(super) async fn run(replica: &Replica) {
    loop {
        let stop = replica.shutdown.sleep(FLUSH).await;
        let heard = replica.heartbeats.take_heard();
        if !heard.is_empty() {
            let left = match replica.signs.touch_sessions(&heard).await {
                Ok(touched) => touched.busy,
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), sessions = heard.len(), "signs of life of agents were not stored");
                    heard
                }
            };
            for session in left {
                replica.heartbeats.touch(session);
            }
        }
        if stop {
            return;
        }
    }
}
