//! The matchmaker: gathers the agents that wait on this replica, claims for all of them at once, and hands the rows out,
//! only to callers that are still there. A row that nobody takes is given back at once, as if it had never been claimed.
//!
//! Who waits costs no query: a waiter is looked at when something may be ready for it, when its session's slot was freed,
//! or when nothing is known of it yet. A poll is the truth behind the hints.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Handed, Replica, pause_after};
use crate::{
    model::{CapabilitySet, SessionId},
    store::{StoreError, Waiter},
    telemetry::error_chain,
};

/// The poll floor: the truth behind all hints.
const POLL: Duration = Duration::from_secs(2);
/// Waiters that share one claim.
const CHUNK: usize = 64;

/// What a waiting agent is told.
#[derive(Debug)]
pub enum Answer {
    /// These tasks are its.
    Tasks(Handed),
    /// Its session has ended.
    SessionEnded,
    /// There is nothing, and it did not want to wait; or the replica stops.
    Nothing,
    /// The database is away.
    Unavailable,
}

#[derive(Debug)]
struct Waiting {
    waiter: Waiter,
    /// What it asks with, once known.
    set: Option<CapabilitySet>,
    /// Does not want to wait beyond one scan.
    once: bool,
    /// Is to be looked at, whatever is thought to be ready.
    due: bool,
    /// May not take anything now: it drains, or holds all that it may.
    barred: bool,
    reply: oneshot::Sender<Answer>,
}

#[derive(Debug, Default)]
struct Queue {
    number: u64,
    /// In the order of their arrival.
    waiting: BTreeMap<u64, Waiting>,
    by_session: HashMap<SessionId, Vec<u64>>,
}

impl Queue {
    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        let session = waiting.waiter.session;
        if let Some(numbers) = self.by_session.get_mut(&session) {
            numbers.retain(|n| *n != number);
            if numbers.is_empty() {
                self.by_session.remove(&session);
            }
        }
        Some(waiting)
    }
}

/// The agents that wait on this replica.
#[derive(Debug, Default)]
pub struct Matchmaker {
    queue: Mutex<Queue>,
    /// Tasks that were claimed here.
    claimed: AtomicU64,
}

/// A place in the queue. Dropping it leaves the queue; what was handed to it and never looked at goes back.
#[derive(Debug)]
pub struct Place {
    replica: Arc<Replica>,
    number: u64,
    answer: Option<oneshot::Receiver<Answer>>,
}

impl Matchmaker {
    /// Queues up. With `once`, the answer is [`Answer::Nothing`] after one scan that finds nothing.
    pub fn wait(replica: &Arc<Replica>, waiter: Waiter, once: bool) -> Place {
        let (reply, answer) = oneshot::channel();
        let set = replica.store.effective(&waiter);
        let due = once || waiter.repeatable || set.is_none();
        let asks_for = if due { None } else { set.clone() };
        let mut queue = replica.matchmaker.lock();
        queue.number += 1;
        let number = queue.number;
        queue.by_session.entry(waiter.session).or_default().push(number);
        queue.waiting.insert(number, Waiting { waiter, set, once, due, barred: false, reply });
        drop(queue);
        // Not before: what becomes ready meanwhile finds it in the queue, or is found here.
        if asks_for.is_none_or(|set| replica.store.may_have_ready(&set)) {
            replica.wake.match_now();
        }
        Place { replica: Arc::clone(replica), number, answer: Some(answer) }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many polls wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn remove(&self, number: u64) -> Option<Waiting> {
        self.lock().remove(number)
    }

    /// These sessions may take more than before. True when one of them waits here.
    pub(super) fn freed(&self, sessions: &[SessionId]) -> bool {
        let queue = &mut *self.lock();
        let mut waits = false;
        for session in sessions {
            for number in queue.by_session.get(session).into_iter().flatten() {
                if let Some(waiting) = queue.waiting.get_mut(number) {
                    waiting.due = true;
                    waiting.barred = false;
                    waits = true;
                }
            }
        }
        waits
    }

    /// Anything may have changed.
    pub(super) fn look_again(&self) {
        for waiting in self.lock().waiting.values_mut() {
            waiting.due = true;
            waiting.barred = false;
        }
    }

    /// Looks at those of whose sessions nothing is known any more. True when there are some.
    pub(super) fn look_at_unknown(&self, replica: &Replica) -> bool {
        let mut some = false;
        for waiting in self.lock().waiting.values_mut() {
            if replica.store.effective(&waiting.waiter).is_none() {
                waiting.due = true;
                some = true;
            }
        }
        some
    }

    /// These sessions have ended.
    pub(super) fn ended(&self, sessions: &[SessionId]) {
        let queue = &mut *self.lock();
        for session in sessions {
            for number in queue.by_session.get(session).cloned().unwrap_or_default() {
                if let Some(waiting) = queue.remove(number) {
                    let _ = waiting.reply.send(Answer::SessionEnded);
                }
            }
        }
    }

    /// Takes all that wait out of the queue. Numbers go on: old places must not name new waiters.
    fn drain(&self) -> Vec<Waiting> {
        let queue = &mut *self.lock();
        queue.by_session.clear();
        std::mem::take(&mut queue.waiting).into_values().collect()
    }

    /// So many tasks were claimed: what is remembered of the queue, and its table, have to be looked after.
    pub(super) fn has_claimed(&self, tasks: usize) {
        self.claimed.fetch_add(tasks as u64, Ordering::Relaxed);
    }

    /// How many tasks were claimed here since the start.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Whom of the first so many to look at now, in the order of arrival, but for those that were looked at in vain. With `alone`
    /// only the first, when something is ready for it by all that is known.
    fn choose(&self, replica: &Replica, of: Looked<'_>, alone: bool) -> Choice {
        let queue = self.lock();
        let mut promising: HashMap<&CapabilitySet, bool> = HashMap::new();
        let mut chosen = Vec::new();
        for (number, waiting) in queue.waiting.range(..=of.last) {
            if waiting.once != of.once || of.vain.contains(number) {
                continue;
            }
            let look = waiting.due
                || !waiting.barred
                    && waiting.set.as_ref().is_none_or(|set| {
                        *promising.entry(set).or_insert_with(|| replica.store.may_have_ready(set))
                    });
            if look {
                let is_first = chosen.is_empty();
                chosen.push((*number, waiting.waiter.clone()));
                if alone && is_first && !waiting.due {
                    return Choice { chosen, alone };
                }
                if chosen.len() == CHUNK {
                    break;
                }
            }
        }
        Choice { chosen, alone: false }
    }
}

/// Of whom to choose.
struct Looked<'a> {
    /// The last that counts: whoever comes later has its turn after all others had theirs.
    last: u64,
    once: bool,
    vain: &'a HashSet<u64>,
}

/// Whom to look at.
struct Choice {
    /// Their numbers, in the order of their arrival.
    chosen: Vec<(u64, Waiter)>,
    /// It is the first one alone, for whom something is ready by all that is known.
    alone: bool,
}

impl Place {
    /// Waits for the answer, at most so long, and not beyond the moment when the replica is told to stop.
    pub async fn answer(&mut self, limit: Duration) -> Answer {
        let Some(mut answer) = self.answer.take() else { return Answer::Nothing };
        let answered = tokio::select! {
            answered = &mut answer => Some(answered.unwrap_or(Answer::Nothing)),
            () = tokio::time::sleep(limit) => None,
            () = self.replica.shutdown.draining() => None,
        };
        answered.unwrap_or_else(|| {
            // Out of the queue first: after that nothing more can be handed to this place.
            self.replica.matchmaker.remove(self.number);
            answer.try_recv().unwrap_or(Answer::Nothing)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.replica.matchmaker.remove(self.number);
    }
}

/// The loop that claims.
pub(super) async fn run(replica: &Arc<Replica>) {
    while !replica.shutdown.is_draining() {
        let again = scan(replica, true).await | scan(replica, false).await;
        let pause = if again { Duration::from_millis(3) } else { Duration::from_secs(86_400) };
        tokio::select! {
            () = replica.shutdown.draining() => {}
            () = replica.wake.matchmaker() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The poll, while somebody waits or works: what no hint told, and what waits longer than it should.
pub(super) async fn poll(replica: &Arc<Replica>) {
    let (mut pause, mut seen) = (POLL, 0);
    while !replica.shutdown.sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await {
        let sessions: Vec<SessionId> =
            replica.matchmaker.lock().by_session.keys().copied().collect();
        let claimed = replica.matchmaker.claimed();
        let works = claimed != std::mem::replace(&mut seen, claimed);
        if sessions.is_empty() && !works {
            continue;
        }
        let begun = Instant::now();
        if let Err(error) = look(replica, &sessions).await {
            tracing::warn!(error = %error_chain(&error), waiting = sessions.len(), "the poll for waiting agents failed");
            for waiting in replica.matchmaker.drain() {
                let _ = waiting.reply.send(Answer::Unavailable);
            }
        }
        pause = pause_after(begun.elapsed(), POLL);
    }
}

async fn look(replica: &Replica, sessions: &[SessionId]) -> Result<(), StoreError> {
    let pinned = replica.store.look_below(sessions).await?;
    replica.matchmaker.freed(&pinned);
    for waiting in replica.matchmaker.lock().waiting.values_mut().filter(|w| w.barred) {
        waiting.due = true;
    }
    // Whoever may find something now; also in a lane that only this look has shown.
    let all = Looked { last: u64::MAX, once: false, vain: &HashSet::new() };
    if !replica.matchmaker.choose(replica, all, true).chosen.is_empty() {
        replica.wake.match_now();
    }
    Ok(())
}

/// One look for those that wait now and may find something; who comes meanwhile wakes the loop again. True when somebody went without although there may be something.
async fn scan(replica: &Arc<Replica>, once: bool) -> bool {
    let last = replica.matchmaker.lock().number;
    let mut vain = HashSet::new();
    let mut tries = 0;
    loop {
        // After a hint mostly one task has become ready, and who takes it sees whether there are more.
        let alone = tries == 0 && vain.is_empty();
        let Choice { chosen, alone } =
            replica.matchmaker.choose(replica, Looked { last, once, vain: &vain }, alone);
        if chosen.is_empty() {
            return false;
        }
        let how = match (alone, once) {
            (true, _) => How::AtOnce,
            (false, true) => How::InFull,
            (false, false) => How::ByMarks,
        };
        // On a shortfall again at once: the rows that were lost to others are gone, the next ones are not.
        if claim(replica, &chosen, how).await {
            tries += 1;
            if tries >= 5 {
                return true;
            }
            if tries > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        } else {
            vain.extend(chosen.iter().map(|(number, _)| *number));
            if once {
                for (number, _) in &chosen {
                    answer(replica, *number, Answer::Nothing);
                }
            }
        }
    }
}

/// How to claim.
#[derive(Debug, Clone, Copy)]
enum How {
    /// Looks everywhere, first.
    InFull,
    /// Looks first where something may be.
    ByMarks,
    /// The same for one, without looking first.
    AtOnce,
}

/// Claims once, answers those that got something. True when to try again for the others.
async fn claim(replica: &Arc<Replica>, asked: &[(u64, Waiter)], how: How) -> bool {
    let waiters: Vec<Waiter> = asked.iter().map(|(_, waiter)| waiter.clone()).collect();
    // Before the claim: what becomes due meanwhile is to be looked at again.
    for (number, waiter) in asked {
        if let Some(waiting) = replica.matchmaker.lock().waiting.get_mut(number) {
            waiting.due = false;
            waiting.set = waiting.set.take().or_else(|| replica.store.effective(waiter));
        }
    }
    let begun = Instant::now();
    let claiming = match how {
        How::AtOnce => replica.store.claim_at_once(&waiters[0]).await,
        How::ByMarks => replica.store.claim_for_agents(&waiters, false).await,
        How::InFull => replica.store.claim_for_agents(&waiters, true).await,
    };
    let mut claims = match claiming {
        Ok(claims) => {
            if !claims.claimed.is_empty() {
                crate::metrics::claim("http_pull", claims.claimed.len(), begun.elapsed());
            }
            claims
        }
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), waiting = asked.len(), "no claim was possible for waiting agents");
            for (number, _) in asked {
                answer(replica, *number, Answer::Unavailable);
            }
            return false;
        }
    };
    let served: HashSet<usize> = claims.claimed.iter().map(|claim| claim.0).collect();
    replica.matchmaker.has_claimed(claims.claimed.len());
    let served_all = served.len() == asked.len();
    for place in served {
        let (number, waiter) = &asked[place];
        let handed = Handed::new(replica, waiter.session, &mut claims, place);
        answer(replica, *number, Answer::Tasks(handed));
    }
    for place in &claims.ended {
        answer(replica, asked[*place].0, Answer::SessionEnded);
    }
    for place in &claims.barred {
        if let Some(waiting) = replica.matchmaker.lock().waiting.get_mut(&asked[*place].0) {
            waiting.barred = true;
        }
    }
    if claims.shortfall {
        for (number, _) in asked {
            if let Some(waiting) = replica.matchmaker.lock().waiting.get_mut(number) {
                // It may be due already: its slot became free during this claim.
                waiting.due |= !waiting.barred;
            }
        }
    }
    // Had the one that claimed at once something, then there may be more for the others.
    claims.shortfall || matches!(how, How::AtOnce) && served_all
}

/// What is handed to a caller who has gone is dropped here, and so given back.
fn answer(replica: &Replica, number: u64, answer: Answer) {
    if let Some(waiting) = replica.matchmaker.remove(number) {
        let _ = waiting.reply.send(answer);
    }
}
