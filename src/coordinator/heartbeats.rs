//! Heartbeats of agents, gathered and written in batches: one narrow row a session, never one a task.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::Replica;
use crate::{
    model::SessionId,
    store::{AgentBeat, Heard, Store},
    telemetry::error_chain,
};

/// How often it is looked for signs of life that are to be written.
const FLUSH: Duration = Duration::from_millis(500);
/// A session's next sign of life is written so long after the one before, or after this part of the time that it may be
/// silent. Each write leaves a dead row behind, and claims read through those that no vacuum may remove while an old
/// snapshot is held.
const PAUSE: Duration = Duration::from_secs(5);
const PART: u32 = 12;
/// Heartbeats in one batch.
const BATCH: usize = 256;

/// What agents are heard of since the last batch.
#[derive(Debug)]
pub struct Heartbeats {
    /// Signs of life; any authenticated call of an agent is one.
    signs: Mutex<HashMap<SessionId, Sign>>,
    /// How long after a write the next one of the same session is due.
    pause: Duration,
    /// Heartbeats that wait for their answers, in the order of their arrival.
    waiting: Mutex<Vec<Waiting>>,
    /// Whoever has it writes for all that wait.
    turn: tokio::sync::Mutex<()>,
}

/// A session's signs of life.
#[derive(Debug, Default)]
struct Sign {
    /// The last one, until it is written.
    heard: Option<Instant>,
    /// When the one before was.
    written: Option<Instant>,
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
    /// For agents that may be silent for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self {
            signs: Mutex::default(),
            pause: PAUSE.min(ttl / PART),
            waiting: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    fn signs(&self) -> MutexGuard<'_, HashMap<SessionId, Sign>> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This session's agent has just called.
    pub fn touch(&self, session: SessionId) {
        self.signs().entry(session).or_default().heard = Some(Instant::now());
    }

    /// The signs of life that are to be written now, or all that have not been written. They are due until they are
    /// [`written`](Self::written).
    fn due(&self, all: bool) -> Vec<(SessionId, Instant)> {
        let rests = |sign: &Sign| sign.written.is_some_and(|at| at.elapsed() < self.pause);
        let mut signs = self.signs();
        signs.retain(|_, sign| sign.heard.is_some() || rests(sign));
        let due = signs.iter().filter(|(_, sign)| all || !rests(sign));
        due.filter_map(|(session, sign)| Some((*session, sign.heard?))).collect()
    }

    /// These signs of life are in the database, or their sessions have ended.
    fn written(&self, written: impl IntoIterator<Item = (SessionId, Instant)>) {
        let mut signs = self.signs();
        for (session, heard) in written {
            let sign = signs.entry(session).or_default();
            sign.written = Some(Instant::now());
            // It may have called again meanwhile.
            sign.heard = sign.heard.filter(|at| *at > heard);
        }
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
    let heartbeats = &replica.heartbeats;
    loop {
        let stop = replica.shutdown.sleep(FLUSH).await;
        let due = heartbeats.due(stop);
        if !due.is_empty() {
            match replica.signs.touch_sessions(&due).await {
                Ok(touched) => {
                    let busy: BTreeSet<SessionId> = touched.busy.into_iter().collect();
                    heartbeats.written(due.into_iter().filter(|(s, _)| !busy.contains(s)));
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), sessions = due.len(), "signs of life of agents were not stored");
                }
            }
        }
        if stop {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionId {
        SessionId(uuid::Uuid::now_v7())
    }

    #[test]
    fn a_session_that_calls_all_the_time_is_written_now_and_then() {
        let heartbeats = Heartbeats::new(Duration::from_secs(60));
        let (busy, other) = (session(), session());
        heartbeats.touch(busy);
        let first = heartbeats.due(false);
        assert_eq!(first.len(), 1);
        heartbeats.touch(busy);
        heartbeats.written(first.clone());
        assert!(heartbeats.due(false).is_empty(), "it has just been written");
        heartbeats.touch(other);
        assert_eq!(heartbeats.due(false)[0].0, other, "nobody waits for another");
        let (due, all): (Vec<_>, _) = (heartbeats.due(true), BTreeSet::from([busy, other]));
        assert_eq!(due.iter().map(|(session, _)| *session).collect::<BTreeSet<_>>(), all);
        assert!(due.iter().all(|(_, heard)| *heard > first[0].1), "the last call is what counts");
    }

    #[test]
    fn what_could_not_be_written_stays_due_and_what_rests_is_forgotten() {
        let heartbeats = Heartbeats::new(Duration::ZERO);
        let session = session();
        heartbeats.touch(session);
        let due = heartbeats.due(false);
        assert_eq!(heartbeats.due(false), due);
        heartbeats.written(due);
        assert!(heartbeats.due(true).is_empty());
        assert!(heartbeats.signs().is_empty());
    }
}
