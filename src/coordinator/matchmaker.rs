//! The matchmaker: gathers the agents that wait on this replica, claims for all of them at once, and hands the rows out,
//! only to callers that are still there. A row that nobody takes is given back at once, as if it had never been claimed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Replica, Reply};
use crate::{
    model::{Actor, CapabilitySet, Lease, SessionId, TaskId},
    store::{EndLease, HeldLease, Outcome, Waiter},
    telemetry::error_chain,
};

/// The poll floor: the truth behind all hints.
const POLL: Duration = Duration::from_secs(2);
/// Waiters that share one claim.
const CHUNK: usize = 64;

/// What a waiting agent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This task is its, under this lease.
    Task(TaskId, Lease),
    /// Its session has ended.
    SessionEnded,
    /// There is nothing, and it did not want to wait; or the replica stops.
    Nothing,
    /// The database is away.
    Unavailable,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    waiter: Waiter,
    /// Does not want to wait beyond one scan.
    once: bool,
    reply: oneshot::Sender<Answer>,
}

/// The agents that wait on this replica, in the order of their arrival.
#[derive(Debug, Default)]
pub struct Matchmaker {
    waiting: Mutex<(u64, Vec<Waiting>)>,
}

/// A place in the queue. Dropping it leaves the queue, and gives back what was handed out but never taken.
#[derive(Debug)]
pub struct Place {
    replica: Arc<Replica>,
    number: u64,
    session: SessionId,
    answer: Option<oneshot::Receiver<Answer>>,
    taken: Option<HeldLease>,
    /// Until the reply is written.
    reply: Option<Reply>,
}

impl Matchmaker {
    /// Queues up. With `once`, the answer is [`Answer::Nothing`] after one scan that finds nothing.
    pub fn wait(
        replica: &Arc<Replica>,
        session: SessionId,
        capabilities: Option<CapabilitySet>,
        once: bool,
    ) -> Place {
        let (reply, answer) = oneshot::channel();
        let mut queue = replica.matchmaker.lock();
        queue.0 += 1;
        let number = queue.0;
        queue.1.push(Waiting { number, waiter: Waiter { session, capabilities }, once, reply });
        drop(queue);
        replica.wake.match_now();
        Place {
            replica: Arc::clone(replica),
            number,
            session,
            answer: Some(answer),
            taken: None,
            reply: None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, Vec<Waiting>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many agents wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().1.len()
    }

    fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    fn remove(&self, number: u64) -> Option<Waiting> {
        let mut queue = self.lock();
        let place = queue.1.iter().position(|w| w.number == number)?;
        Some(queue.1.remove(place))
    }
}

impl Place {
    /// Waits for the answer, at most so long, and not beyond the moment when the replica is told to stop.
    pub async fn answer(&mut self, limit: Duration) -> Answer {
        let Some(mut answer) = self.answer.take() else { return Answer::Nothing };
        let answered = tokio::select! {
            answered = &mut answer => Some(answered.unwrap_or(Answer::Nothing)),
            () = tokio::time::sleep(limit) => None,
            () = self.replica.shutdown.triggered() => None,
        };
        let answered = answered.unwrap_or_else(|| {
            // Out of the queue first: after that nothing more can be handed to this place.
            self.replica.matchmaker.remove(self.number);
            answer.try_recv().unwrap_or(Answer::Nothing)
        });
        if let Answer::Task(task_id, lease) = answered {
            self.reply = Some(self.replica.replies.open(task_id, lease));
            self.taken = Some(HeldLease { task_id, lease, holder: self.session });
        }
        answered
    }

    /// The reply is on its way: the claim stands.
    pub fn delivered(mut self) {
        self.taken = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.replica.matchmaker.remove(self.number);
        if let Some(Ok(Answer::Task(task_id, lease))) =
            self.answer.as_mut().map(oneshot::Receiver::try_recv)
        {
            self.taken = Some(HeldLease { task_id, lease, holder: self.session });
        }
        if let Some(held) = self.taken.take() {
            let replica = Arc::clone(&self.replica);
            self.replica.shutdown.spawn(async move { undo(&replica, vec![held]).await });
        }
    }
}

/// The loop.
pub(super) async fn run(replica: &Replica) {
    while !replica.shutdown.is_triggered() {
        let pause = if replica.matchmaker.is_empty() {
            Duration::MAX
        } else if scan(replica).await {
            Duration::from_millis(3)
        } else {
            POLL.mul_f64(rand::random_range(0.75..1.25))
        };
        tokio::select! {
            () = replica.shutdown.triggered() => {}
            () = replica.wake.matchmaker() => {}
            () = tokio::time::sleep(pause.min(Duration::from_secs(86_400))) => {}
        }
    }
}

/// One look for everybody that waits. True when somebody went without although there may be something.
async fn scan(replica: &Replica) -> bool {
    let queue: Vec<(u64, Waiter)> =
        replica.matchmaker.lock().1.iter().map(|w| (w.number, w.waiter.clone())).collect();
    let mut shortfall = false;
    for chunk in queue.chunks(CHUNK) {
        let mut tries = 0;
        // On a shortfall again at once: the rows that were lost to others are gone, the next ones are not.
        let mut left: Vec<(u64, Waiter)> = chunk.to_vec();
        loop {
            let (again, rest) = claim(replica, left).await;
            left = rest;
            tries += 1;
            if !again || left.is_empty() {
                dismiss(replica, &left);
                break;
            }
            if tries >= 5 {
                shortfall = true;
                break;
            }
            if tries > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
    shortfall
}

/// Claims once, answers those that got something, returns the others, and whether to try again for them.
async fn claim(replica: &Replica, asked: Vec<(u64, Waiter)>) -> (bool, Vec<(u64, Waiter)>) {
    let waiters: Vec<Waiter> = asked.iter().map(|(_, w)| w.clone()).collect();
    let begun = Instant::now();
    let claims = match replica.store.claim_for_agents(&waiters).await {
        Ok(claims) => {
            if !claims.claimed.is_empty() {
                crate::metrics::claim("http_pull", claims.claimed.len(), begun.elapsed());
            }
            claims
        }
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), waiting = asked.len(), "no claim was possible for waiting agents");
            for (number, _) in &asked {
                answer(replica, *number, Answer::Unavailable);
            }
            return (false, Vec::new());
        }
    };
    let mut unwanted = Vec::new();
    let mut done: Vec<usize> = Vec::new();
    for (place, task_id, lease) in &claims.claimed {
        done.push(*place);
        let (number, waiter) = &asked[*place];
        if !answer(replica, *number, Answer::Task(*task_id, *lease)) {
            unwanted.push(HeldLease { task_id: *task_id, lease: *lease, holder: waiter.session });
        }
    }
    for place in &claims.ended {
        done.push(*place);
        answer(replica, asked[*place].0, Answer::SessionEnded);
    }
    if !unwanted.is_empty() {
        undo(replica, unwanted).await;
    }
    let rest = asked
        .into_iter()
        .enumerate()
        .filter(|(place, _)| !done.contains(place))
        .map(|(_, waiting)| waiting)
        .collect();
    (claims.shortfall, rest)
}

/// Those that did not want to wait have been looked for.
fn dismiss(replica: &Replica, left: &[(u64, Waiter)]) {
    let mut queue = replica.matchmaker.lock();
    let (gone, stay) = std::mem::take(&mut queue.1)
        .into_iter()
        .partition(|w| w.once && left.iter().any(|(number, _)| *number == w.number));
    queue.1 = stay;
    drop(queue);
    for waiting in gone {
        let _ = waiting.reply.send(Answer::Nothing);
    }
}

/// False when the caller has gone.
fn answer(replica: &Replica, number: u64, answer: Answer) -> bool {
    replica.matchmaker.remove(number).is_some_and(|waiting| waiting.reply.send(answer).is_ok())
}

/// Gives claims back that never reached their callers.
async fn undo(replica: &Replica, held: Vec<HeldLease>) {
    let ends: Vec<EndLease> = held
        .iter()
        .map(|held| EndLease {
            held: *held,
            outcome: Outcome::Undone,
            reason: Some("the caller had gone".to_owned()),
            wait_secs: None,
            receipt: None,
            actor: Actor::Replica(replica.config.server.replica_id.clone()),
        })
        .collect();
    match replica.store.end_leases(&ends, replica.config.tasks.retry_backoff).await {
        Ok(_) => replica.wake.ready(),
        Err(error) => tracing::error!(
            error = %error_chain(&error),
            tasks = held.len(),
            "claims whose callers had gone could not be undone; they return when their leases end"
        ),
    }
}
