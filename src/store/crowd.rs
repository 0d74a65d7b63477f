//! Claims from the same lanes at one moment: transactions of this process do not choose the same tasks, and replicas that
//! got into each other's way choose from different ones for a while.
//!
//! Hints only: whoever locks a row first has it, and only what was returned has been taken.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Standing, Store, asking::Assigned, ready::Candidate};
use crate::model::TaskId;

/// After a loss to another replica so many claims are made apart from it.
const APART: usize = 256;
/// Whose tasks stand where is chance: so many more of one's own are looked for.
const SPREAD: usize = 12;
/// Among more replicas than this nobody looks for tasks of its own: it would have to read too many of the others'.
const MOST: u32 = 8;

#[derive(Debug, Default)]
struct State {
    /// Where this replica stands; unknown until its first heartbeat.
    standing: Option<Standing>,
    /// How many more claims are made apart.
    apart: usize,
    /// Counts reads and the ends of transactions.
    clock: u64,
    /// When the reads began whose candidates are still in use, and how many tasks are going to be chosen from each.
    reads: BTreeMap<u64, usize>,
    /// How many tasks the statements under way take that take the head of the queue, and how many all of them have taken or
    /// are going to.
    heads: usize,
    all_heads: usize,
    /// Tasks chosen by a transaction under way, or by one that ended at this time: what was read before does not show it.
    chosen: HashMap<TaskId, Option<u64>>,
}

/// What this process knows of claims other than the one that asks.
#[derive(Debug, Default)]
pub(super) struct Crowd(Arc<Mutex<State>>);

/// Which of the ready tasks a claim prefers: each replica those with its own remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share(Standing);

/// A read of candidates; kept as long as they are in use.
#[derive(Debug)]
pub(super) struct Reading {
    state: Arc<Mutex<State>>,
    begun: u64,
    /// How many tasks had been taken from the head of the queue when it began.
    heads: usize,
}

/// A statement that takes the head of the queue without choosing before; kept until it has ended.
#[derive(Debug)]
pub(super) struct Head(Reading, usize);

/// What a transaction has chosen; kept until it has ended.
#[derive(Debug)]
pub(super) struct Chosen {
    state: Arc<Mutex<State>>,
    tasks: Vec<TaskId>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crowd {
    /// All of the queue, or after a loss this replica's part of it.
    pub(super) fn share(&self) -> Share {
        let state = lock(&self.0);
        match state.standing {
            Some(standing) if state.apart > 0 && (2..=MOST).contains(&standing.of) => {
                Share(standing)
            }
            _ => Share::ALL,
        }
    }

    /// No other replica has been in the way of late.
    pub(super) fn is_calm(&self) -> bool {
        lock(&self.0).apart == 0
    }

    /// No other claim is under way, by all that is known.
    pub(super) fn is_alone(&self) -> bool {
        let state = lock(&self.0);
        state.apart == 0 && state.reads.is_empty() && state.chosen.is_empty()
    }

    /// A claim got all that it had chosen from what it read, or lost some to others: to another replica, unless this one has
    /// taken the head of the queue meanwhile.
    pub(super) fn learn(&self, reading: &Reading, lost: bool) {
        let mut state = lock(&self.0);
        if !lost {
            state.apart = state.apart.saturating_sub(1);
        } else if state.all_heads == reading.heads {
            state.apart = APART;
        }
    }

    /// A statement begins that takes so many tasks from the head of the queue, wherever that is by then.
    pub(super) fn take_head(&self, wanted: usize) -> Head {
        let (reading, _) = self.read(wanted);
        let mut state = lock(&self.0);
        state.heads += wanted;
        state.all_heads += wanted;
        Head(reading, wanted)
    }

    /// Begins to read candidates, of which so many are wanted. Says beside it how many of those that it will find are others':
    /// chosen by transactions under way, or going to be.
    pub(super) fn read(&self, wanted: usize) -> (Reading, usize) {
        let mut state = lock(&self.0);
        let chosen = state.chosen.values().filter(|end| end.is_none()).count();
        // As many again may be taken from the head before this one has chosen.
        let others = chosen + state.reads.values().sum::<usize>() + 2 * state.heads;
        state.clock += 1;
        let begun = state.clock;
        state.reads.insert(begun, wanted);
        let heads = state.all_heads - state.heads;
        (Reading { state: Arc::clone(&self.0), begun, heads }, others)
    }

    /// For a transaction that is about to choose.
    pub(super) fn chosen(&self) -> Chosen {
        Chosen { state: Arc::clone(&self.0), tasks: Vec::new() }
    }
}

impl Store {
    /// True when another replica has been in the way of this one's claims of late.
    pub fn has_company(&self) -> bool {
        !self.crowd().is_calm()
    }

    /// Where this replica stands among those that live.
    pub fn stand(&self, standing: Standing) {
        lock(&self.crowd().0).standing = Some(standing);
    }
}

impl Share {
    /// Everything.
    const ALL: Self = Self(Standing { place: 0, of: 1 });

    /// How many candidates have to be read so that so many of its own are among them, as a rule.
    pub(super) fn so_deep(self, wanted: usize) -> usize {
        if self == Self::ALL { wanted } else { (wanted + SPREAD) * self.0.of as usize }
    }

    /// Candidates in order, its own ones first, as far as they have the priority of the first.
    pub(super) fn prefer(self, candidates: &mut [Candidate]) {
        if self == Self::ALL {
            return;
        }
        let Some(first) = candidates.first().map(|c| c.priority) else { return };
        let same = candidates.iter().take_while(|c| c.priority == first).count();
        candidates[..same].sort_by_key(|c| !self.has(c.task_id));
    }

    /// The last bits of an id are random.
    fn has(self, task: TaskId) -> bool {
        task.0.as_u128() % u128::from(self.0.of) == u128::from(self.0.place)
    }
}

impl Reading {
    fn hidden(&self, state: &State) -> HashSet<TaskId> {
        let chosen = state.chosen.iter();
        chosen
            .filter(|(_, end)| end.is_none_or(|end| end > self.begun))
            .map(|(id, _)| *id)
            .collect()
    }

    /// How many tasks of the head of the queue that it read, or did not even see any more, have been taken since or are about
    /// to be. Who chose those would go without, again and again.
    pub(super) fn passed(&self) -> usize {
        lock(&self.state).all_heads - self.heads
    }

    /// What others have chosen of what it read.
    pub(super) fn taken(&self) -> HashSet<TaskId> {
        self.hidden(&lock(&self.state))
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        lock(&self.0.state).heads -= self.1;
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let state = &mut *lock(&self.state);
        state.reads.remove(&self.begun);
        let oldest = state.reads.keys().next().copied().unwrap_or(u64::MAX);
        state.chosen.retain(|_, end| end.is_none_or(|end| end > oldest));
    }
}

impl Chosen {
    /// Chooses from what was read, but for what others have chosen.
    pub(super) fn choose(
        &mut self,
        reading: &Reading,
        gone: &mut HashSet<TaskId>,
        assign: impl FnOnce(&mut HashSet<TaskId>) -> Assigned,
    ) -> Assigned {
        let state = &mut *lock(&self.state);
        gone.extend(reading.hidden(state));
        let assigned = assign(gone);
        if let Some(wanted) = state.reads.get_mut(&reading.begun) {
            *wanted = 0;
        }
        for pair in &assigned.pairs {
            state.chosen.insert(pair.task_id, None);
            self.tasks.push(pair.task_id);
        }
        assigned
    }
}

impl Chosen {
    /// What others have chosen of what was read, and what came to be taken of its own choice.
    pub(super) fn gone(
        &self,
        reading: &Reading,
        taken: impl Iterator<Item = TaskId>,
    ) -> HashSet<TaskId> {
        let mut gone = reading.taken();
        for lost in &self.tasks {
            gone.remove(lost);
        }
        gone.extend(taken);
        gone
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        let state = &mut *lock(&self.state);
        state.clock += 1;
        let in_use = !state.reads.is_empty();
        for task in &self.tasks {
            if in_use {
                state.chosen.insert(*task, Some(state.clock));
            } else {
                state.chosen.remove(task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{super::asking::Pair, *};

    fn id(n: u128) -> TaskId {
        TaskId(Uuid::from_u128(n))
    }

    fn choose(chosen: &mut Chosen, reading: &Reading, wanted: &[u128]) -> Vec<u128> {
        let assigned = chosen.choose(reading, &mut HashSet::new(), |gone| {
            let free = wanted.iter().filter(|n| !gone.contains(&id(**n)));
            let pairs = free.map(|n| Pair { place: 0, task_id: id(*n), lane_id: None }).collect();
            Assigned { pairs, passed_over: false }
        });
        assigned.pairs.iter().map(|pair| pair.task_id.0.as_u128()).collect()
    }

    #[test]
    fn what_one_has_chosen_another_does_not_until_it_is_read_anew() {
        let crowd = Crowd::default();
        let read = |wanted| crowd.read(wanted);
        let ((one, before), (two, others)) = (read(2), read(1));
        assert_eq!((before, others), (0, 2), "the second reads as much more as the first wants");
        let mut first = crowd.chosen();
        assert_eq!(choose(&mut first, &one, &[1, 2]), [1, 2]);
        assert_eq!(choose(&mut crowd.chosen(), &two, &[1, 2, 3]), [3]);
        let (during, others) = read(1);
        assert_eq!(
            others, 2,
            "what one under way has chosen; nobody finds what one took that has ended"
        );
        drop((one, first));
        assert_eq!(two.taken().len(), 2 + 1, "read before the ends");
        assert_eq!(choose(&mut crowd.chosen(), &during, &[1, 2]), [0_u128; 0]);
        let (after, _) = read(1);
        assert!(after.taken().is_empty());
        drop((two, during, after));
        assert_eq!(read(1).1, 0, "nothing is kept");
    }

    /// Else agents that ask for their first task would go without as long as others are busy.
    #[test]
    fn who_chooses_passes_over_what_the_head_of_the_queue_loses_meanwhile() {
        let crowd = Crowd::default();
        let first = crowd.take_head(5);
        let (reading, others) = crowd.read(1);
        assert_eq!(others, 5 + 2 * 5, "it reads as deep as that takes");
        assert_eq!(reading.passed(), 5);
        let second = crowd.take_head(3);
        drop(first);
        assert_eq!(reading.passed(), 5 + 3, "both may have come after what it saw");
        drop(second);
        assert_eq!(reading.passed(), 5 + 3);
        let (reading, others) = crowd.read(1);
        assert_eq!((reading.passed(), others), (0, 1), "this one sees what they have taken");
    }

    #[test]
    fn after_a_loss_each_prefers_its_own_part_of_the_first_priority() {
        let crowd = Crowd::default();
        let stand = |place, of| lock(&crowd.0).standing = Some(Standing { place, of });
        stand(1, 2);
        let order = |share: Share| {
            let of = |(n, priority)| Candidate { task_id: id(n), lane_id: 1, priority };
            let mut all = [(2, 1), (3, 1), (4, 1), (5, 1), (7, 0)].map(of);
            share.prefer(&mut all);
            all.map(|c| c.task_id.0.as_u128())
        };
        assert_eq!(order(crowd.share()), [2, 3, 4, 5, 7]);
        let (reading, _) = crowd.read(1);
        let head = crowd.take_head(1);
        crowd.learn(&reading, true);
        assert_eq!(crowd.share(), Share::ALL, "lost to this replica itself, for all that is known");
        drop(head);
        crowd.learn(&reading, true);
        assert_eq!(crowd.share(), Share::ALL, "read before that ended");
        drop(reading);
        let (reading, _) = crowd.read(1);
        crowd.learn(&reading, true);
        assert_eq!(order(crowd.share()), [3, 5, 2, 4, 7]);
        assert_eq!(crowd.share().so_deep(3), (3 + SPREAD) * 2);
        (0..APART).for_each(|_| crowd.learn(&reading, false));
        assert_eq!(crowd.share(), Share::ALL);
        assert_eq!(crowd.share().so_deep(3), 3);
        crowd.learn(&reading, true);
        for (place, of) in [(0, 1), (0, 0), (3, 2), (1, 100)] {
            stand(place, of);
            assert_eq!(order(crowd.share()), [2, 3, 4, 5, 7], "{place} of {of}");
        }
    }
}
