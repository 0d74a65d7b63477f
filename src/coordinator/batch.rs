//! Writes that arrive together commit together: a commit costs the same for one as for fifty.
//!
//! What arrives while nothing is under way is done at once; while batches are under way, the next one gathers until it is as
//! large as they are on the average, or for a few milliseconds: many small batches would cost the database more. Of items that are about
//! the same thing (a task, a key, a session) one is in hand at a time, and they take turns in the order of their arrival. A batch that the database refuses is done again item by item, so that one bad item hurts nobody else.
//! Each caller is answered after its commit, with what came of its own item. What nobody waits for any more is left out,
//! unless it is in hand by then.

use std::{
    collections::{HashSet, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::Replica;
use crate::{store::StoreError, telemetry::error_chain};

/// How batches follow each other.
struct Pace {
    /// So many are under way at once: while one waits for its commit, another keeps the database busy.
    under_way: usize,
    /// So long the next one gathers at most beside those that are larger.
    patience: Duration,
}

/// While one waits for its commit, and another for its turn here, a third keeps the database busy.
const ALONE: Pace = Pace { under_way: 3, patience: Duration::from_millis(3) };
/// Others keep it busy, too, and many small batches would be in each other's way.
const IN_COMPANY: Pace = Pace { under_way: 2, patience: Duration::from_millis(5) };

fn pace(replica: &Replica) -> &'static Pace {
    if replica.store.has_company() { &IN_COMPANY } else { &ALONE }
}

/// Text that weighs as much as another item: a batch is one message to the database.
const TEXT: usize = 16 * 1024;

/// What an item with this text counts.
pub(super) fn weight(text: &str) -> usize {
    1 + text.len() / TEXT
}

/// Something that can be done together with others of its kind.
pub(super) trait Shared: Send + Sync + Sized + 'static {
    /// What two items must not touch at the same time.
    type Key: Hash + Eq + Clone + Send + Sync + 'static;
    /// What came of one item.
    type Reply: Send + 'static;
    /// The size of a batch, as the sum of its items' sizes.
    const MOST: usize;

    /// What the item touches.
    fn keys(&self) -> Vec<Self::Key>;

    /// How much it counts.
    fn size(&self) -> usize {
        1
    }

    /// Does all of them, or none; one reply each, in order.
    fn carry_out(
        replica: &Arc<Replica>,
        items: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Reply>, StoreError>> + Send;
}

type Answered<I> = Result<<I as Shared>::Reply, Arc<StoreError>>;

struct Waiting<I: Shared> {
    item: I,
    keys: Vec<I::Key>,
    reply: oneshot::Sender<Answered<I>>,
}

struct State<I: Shared> {
    waiting: VecDeque<Waiting<I>>,
    in_hand: HashSet<I::Key>,
    under_way: usize,
    /// The size of what waits.
    size: usize,
    /// The size of the batches under way for which the next one waits, and their number.
    awaited: usize,
    awaited_batches: usize,
}

impl<I: Shared> State<I> {
    /// True when what waits is enough for a batch beside those under way.
    fn is_enough(&self) -> bool {
        let batches = self.awaited_batches.max(1);
        self.size * batches >= self.awaited.min(I::MOST * batches)
    }

    /// True when a further batch has to be begun.
    fn begin(&mut self, under_way: usize) -> bool {
        let begin = self.under_way < under_way && self.size > 0 && self.is_enough();
        if begin {
            self.under_way += 1;
        }
        begin
    }
}

/// The items of one kind that wait, and those in hand.
pub(super) struct Batch<I: Shared> {
    state: Mutex<State<I>>,
}

impl<I: Shared> std::fmt::Debug for Batch<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("waiting", &self.lock().waiting.len()).finish()
    }
}

impl<I: Shared> Default for Batch<I> {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            in_hand: HashSet::new(),
            under_way: 0,
            size: 0,
            awaited: 0,
            awaited_batches: 0,
        };
        Self { state: Mutex::new(state) }
    }
}

impl<I: Shared> Batch<I> {
    fn lock(&self) -> MutexGuard<'_, State<I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item. True when a batch has to be begun for it.
    fn push(&self, item: I, reply: oneshot::Sender<Answered<I>>, under_way: usize) -> bool {
        let mut state = self.lock();
        let keys = item.keys();
        state.size += item.size();
        state.waiting.push_back(Waiting { item, keys, reply });
        state.begin(under_way)
    }

    /// The next batch; `None` when nothing can be taken in hand now or it is not worth it yet, which ends the turn of who asked.
    fn next(&self) -> Option<Vec<Waiting<I>>> {
        let state = &mut *self.lock();
        if !state.is_enough() {
            state.under_way -= 1;
            return None;
        }
        let mut blocked = state.in_hand.clone();
        let mut batch: Vec<Waiting<I>> = Vec::new();
        let mut passed = VecDeque::new();
        let mut size = 0;
        while let Some(waiting) = state.waiting.pop_front() {
            if waiting.reply.is_closed() {
                // Whoever asked has gone, and will ask again if it still matters: what is over is not worth others' time.
                state.size -= waiting.item.size();
                continue;
            }
            let free = waiting.keys.iter().all(|key| !blocked.contains(key));
            // What is passed over blocks what comes after it: turns are taken in the order of arrival.
            blocked.extend(waiting.keys.iter().cloned());
            let fits = batch.is_empty() || size + waiting.item.size() <= I::MOST;
            if free && fits {
                size += waiting.item.size();
                batch.push(waiting);
            } else {
                passed.push_back(waiting);
            }
            if size >= I::MOST {
                break;
            }
        }
        passed.append(&mut state.waiting);
        state.waiting = passed;
        if batch.is_empty() {
            state.under_way -= 1;
            return None;
        }
        state.size -= size;
        state.awaited += size;
        state.awaited_batches += 1;
        state.in_hand.extend(batch.iter().flat_map(|w| w.keys.iter().cloned()));
        Some(batch)
    }

    /// The next batch waits no longer for one of this size, which takes its time. True when it has to be begun.
    fn pass(&self, size: usize, under_way: usize) -> bool {
        let mut state = self.lock();
        state.awaited -= size;
        state.awaited_batches -= 1;
        state.begin(under_way)
    }

    /// A batch has ended. `awaited` is its size if the next one still waited for it.
    fn release(&self, keys: &[I::Key], awaited: Option<usize>) {
        let mut state = self.lock();
        if let Some(size) = awaited {
            state.awaited -= size;
            state.awaited_batches -= 1;
        }
        for key in keys {
            state.in_hand.remove(key);
        }
    }

    /// Does an item together with others, and answers once it is committed. Once begun it is carried out, also when nobody
    /// waits for the answer any more; before that it is left out.
    pub(super) async fn submit(
        replica: &Arc<Replica>,
        of: fn(&Replica) -> &Self,
        item: I,
    ) -> Answered<I> {
        let (reply, answer) = oneshot::channel();
        if of(replica).push(item, reply, pace(replica).under_way) {
            Self::turn(replica, of);
        }
        answer.await.unwrap_or_else(|_| {
            let what = "what became of this batch";
            Err(Arc::new(StoreError::Unknown { what: what.to_owned() }))
        })
    }

    /// Does one batch after the other, as long as there is enough for one.
    fn turn(replica: &Arc<Replica>, of: fn(&Replica) -> &Self) {
        let own = Arc::clone(replica);
        replica.shutdown.spawn(async move {
            // Whoever is just arriving comes along.
            tokio::task::yield_now().await;
            while let Some(batch) = of(&own).next() {
                let keys: Vec<I::Key> = batch.iter().flat_map(|w| w.keys.clone()).collect();
                let size = batch.iter().map(|w| w.item.size()).sum();
                let mut awaited = Some(size);
                // In a task of its own, so that a panic ends neither the turn nor the keys that it holds.
                let replica = Arc::clone(&own);
                let mut done = tokio::spawn(async move { carry_out(&replica, batch).await });
                let done = match tokio::time::timeout(pace(&own).patience, &mut done).await {
                    Ok(done) => done,
                    Err(_) => {
                        awaited = None;
                        if of(&own).pass(size, pace(&own).under_way) {
                            Self::turn(&own, of);
                        }
                        done.await
                    }
                };
                if done.is_err() {
                    tracing::error!("a batch panicked");
                }
                of(&own).release(&keys, awaited);
            }
        });
    }
}

async fn carry_out<I: Shared>(replica: &Arc<Replica>, batch: Vec<Waiting<I>>) {
    let (items, replies): (Vec<I>, Vec<_>) = batch.into_iter().map(|w| (w.item, w.reply)).unzip();
    match I::carry_out(replica, &items).await {
        Ok(done) => {
            for (reply, done) in replies.into_iter().zip(done) {
                // What nobody waits for any more is dropped, which undoes what has to be undone.
                let _ = reply.send(Ok(done));
            }
        }
        Err(error) if items.len() > 1 && (!error.is_unavailable() || error.is_locked_out()) => {
            tracing::warn!(error = %error_chain(&error), items = items.len(), "a batch failed; its items are done one by one");
            // Each that meets a lock waits for it as long as the whole batch did. Where the second does, all of them may.
            let mut locked_out = Vec::new();
            for (item, reply) in items.iter().zip(replies) {
                let done = match &locked_out[..] {
                    [_, last] => Err(Arc::clone(last)),
                    _ => I::carry_out(replica, std::slice::from_ref(item)).await.map_err(Arc::new),
                };
                if let Err(error) = &done
                    && error.is_locked_out()
                    && locked_out.len() < 2
                {
                    locked_out.push(Arc::clone(error));
                }
                let _ = reply.send(done.and_then(|mut done| {
                    done.pop().ok_or_else(|| {
                        Arc::new(StoreError::Unknown { what: "no answer".to_owned() })
                    })
                }));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for reply in replies {
                let _ = reply.send(Err(Arc::clone(&error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(&'static [&'static str], usize);

    impl Shared for Item {
        type Key = &'static str;
        type Reply = ();
        const MOST: usize = 3;

        fn keys(&self) -> Vec<Self::Key> {
            self.0.to_vec()
        }

        fn size(&self) -> usize {
            self.1
        }

        async fn carry_out(_: &Arc<Replica>, items: &[Self]) -> Result<Vec<()>, StoreError> {
            Ok(vec![(); items.len()])
        }
    }

    fn keys(batch: Option<Vec<Waiting<Item>>>) -> Vec<&'static str> {
        batch.into_iter().flatten().flat_map(|w| w.keys).collect()
    }

    fn push(queue: &Batch<Item>, keys: &'static [&'static str], size: usize) -> bool {
        let (reply, answer) = oneshot::channel();
        // Waits for the rest of the test.
        std::mem::forget(answer);
        queue.push(Item(keys, size), reply, 3)
    }

    #[test]
    fn what_nobody_waits_for_is_left_out() {
        let queue = Batch::default();
        let (reply, answer) = oneshot::channel();
        queue.push(Item(&["a"], 1), reply, 3);
        push(&queue, &["b"], 1);
        drop(answer);
        assert_eq!(keys(queue.next()), ["b"]);
    }

    #[test]
    fn items_about_one_thing_take_turns_in_the_order_of_their_arrival() {
        let queue = Batch::default();
        assert!(push(&queue, &["a"], 1));
        assert!(push(&queue, &["a", "b"], 1));
        assert!(push(&queue, &["b"], 1));
        assert!(!push(&queue, &["c"], 1), "three batches are under way");
        assert_eq!(keys(queue.next()), ["a", "c"], "b waits behind the one that waits for a");
        assert_eq!(keys(queue.next()), [""; 0], "all that is left is in hand or waits for it");
        queue.release(&["a", "c"], Some(2));
        assert_eq!(keys(queue.next()), ["a", "b"]);
        queue.release(&["a", "b"], Some(1));
        assert_eq!(keys(queue.next()), ["b"]);
    }

    #[test]
    fn a_batch_has_its_size_and_what_is_larger_goes_alone() {
        let queue = Batch::default();
        push(&queue, &["a"], 2);
        push(&queue, &["big"], 9);
        push(&queue, &["b"], 1);
        assert_eq!(keys(queue.next()), ["a", "b"]);
        queue.release(&["a", "b"], Some(3));
        assert_eq!(keys(queue.next()), ["big"]);
    }

    #[test]
    fn a_batch_beside_others_is_as_large_or_they_take_their_time() {
        let queue = Batch::default();
        assert!(push(&queue, &["a"], 2));
        assert_eq!(keys(queue.next()), ["a"]);
        assert!(!push(&queue, &["b"], 1), "it gathers");
        assert!(push(&queue, &["c"], 2), "as much as is in hand");
        assert_eq!(keys(queue.next()), ["b", "c"]);
        assert!(!push(&queue, &["d"], 2), "less than 2 and 3 on the average");
        assert!(push(&queue, &["e"], 1));
        assert_eq!(keys(queue.next()), ["d", "e"]);
        assert!(!push(&queue, &["f"], 1), "three are under way");
        queue.release(&["a"], Some(2));
        assert_eq!(
            keys(queue.next()),
            [""; 0],
            "the turn ends; f comes when the others are done, or"
        );
        assert!(!queue.pass(3, 3));
        assert!(queue.pass(3, 3), "when they take their time");
        assert_eq!(keys(queue.next()), ["f"]);
        queue.release(&["b", "c"], None);
        queue.release(&["d", "e"], None);
        queue.release(&["f"], Some(1));
        assert_eq!(keys(queue.next()), [""; 0]);
        let state = queue.lock();
        assert_eq!((state.awaited, state.awaited_batches), (0, 0));
    }
}
