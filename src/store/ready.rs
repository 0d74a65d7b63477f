//! Where ready tasks are: which lanes there are, and from which `seq` on something may be ready in each.
//!
//! Remembered by each process, so that a claim reads only where something may be, and does not read again what was taken
//! before while an old snapshot holds back vacuum. Never the truth: what becomes ready lowers a mark again by a hint, and a
//! poll looks below the marks for what no hint told.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{GenericClient, begin, commit},
    rows::get,
    statement::{CLAIM_PULL_2_PINNED, FIND_READY_BELOW, LIST_LANES, Params},
};
use crate::model::{CapabilitySet, SessionId, TaskId};

/// Priorities, highest first.
const PRIORITIES: [i16; 4] = [3, 2, 1, 0];
/// The mark where nothing is ready.
const NOTHING: i64 = i64::MAX;
/// No read takes so long.
const LATE: Duration = Duration::from_secs(30);

/// Where a task that became ready stands in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadyPlace {
    /// Its lane.
    pub lane_id: i64,
    /// Its priority's rank.
    pub priority: i16,
    /// Its place.
    pub seq: i64,
}

/// A task that may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) task_id: TaskId,
    pub(super) lane_id: i64,
    pub(super) priority: i16,
}

/// From where a lane is read in one priority.
#[derive(Debug, Default)]
struct Mark {
    low: i64,
    /// Number, `seq` and time of late hints: a read that began before one does not raise the mark above it.
    hints: VecDeque<(u64, i64, Instant)>,
}

impl Mark {
    fn hint(&mut self, number: u64, seq: i64) {
        while self.hints.front().is_some_and(|(_, _, at)| at.elapsed() > LATE) {
            self.hints.pop_front();
        }
        self.low = self.low.min(seq);
        self.hints.push_back((number, seq, Instant::now()));
    }

    /// What a read found first that began after hint `begun`.
    fn raise(&mut self, first: i64, begun: u64) {
        let later = self.hints.iter().rev().take_while(|(number, ..)| *number > begun);
        self.low = later.map(|(_, seq, _)| *seq).min().unwrap_or(NOTHING).min(first);
    }
}

#[derive(Debug, Default)]
struct State {
    /// `None` until they are read.
    lanes: Option<HashMap<i64, CapabilitySet>>,
    marks: HashMap<(i64, i16), Mark>,
    hints: u64,
    /// Number of the last hint that named nothing.
    forgotten: u64,
    /// Number of the last hint since which the lanes have to be read again.
    lanes_lost: u64,
}

/// What this process remembers.
#[derive(Debug, Default)]
pub(super) struct Ready {
    state: Mutex<State>,
}

/// Where the queue begins for a set of capabilities, where that is in one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct First {
    pub(super) lane_id: i64,
    pub(super) priority: i16,
    /// From which `seq` on.
    pub(super) low: i64,
    /// Number of the last hint before that was asked.
    begun: u64,
}

/// Where a read looks: the parameters of `claim_pull_2_ready`.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    pub(super) sets: Vec<i32>,
    pub(super) lanes: Vec<i64>,
    pub(super) priorities: Vec<i16>,
    pub(super) lows: Vec<i64>,
    /// The lanes are not known, so nothing can be found: a hint told of a lane while they were being read.
    pub(super) blind: bool,
    /// Number of the last hint before the read.
    begun: u64,
}

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the lanes have been read.
    pub(super) fn knows_lanes(&self) -> bool {
        self.lock().lanes.is_some()
    }

    fn begun(&self) -> u64 {
        self.lock().hints
    }

    /// Takes what a read found that began at this hint; nothing when a later one told of a lane that it may not have seen.
    fn set_lanes(&self, rows: &[Row], begun: u64) {
        let lanes = rows
            .iter()
            .map(|row| {
                let set = CapabilitySet::from(get::<Vec<String>>(row, "capabilities"));
                (get::<i64>(row, "lane_id"), set)
            })
            .collect();
        let state = &mut *self.lock();
        if state.lanes_lost <= begun {
            state.lanes = Some(lanes);
        }
    }

    /// True when one of the lanes is this very set.
    pub(super) fn has_lane(&self, set: &[String]) -> bool {
        self.lock().lanes.as_ref().is_some_and(|l| l.values().any(|lane| lane.as_slice() == set))
    }

    /// Something became ready here. An unknown lane has all of them read again.
    pub(super) fn hint(&self, places: &[ReadyPlace]) {
        let state = &mut *self.lock();
        state.hints += 1;
        for place in places {
            if state.lanes.as_ref().is_some_and(|lanes| !lanes.contains_key(&place.lane_id)) {
                state.lanes = None;
                state.lanes_lost = state.hints;
            }
            // Also where nothing is marked yet: a read may be under way that is going to.
            let mark = state.marks.entry((place.lane_id, place.priority)).or_default();
            mark.hint(state.hints, place.seq);
        }
    }

    /// Something became ready, somewhere.
    pub(super) fn forget(&self) {
        let state = &mut *self.lock();
        state.hints += 1;
        state.forgotten = state.hints;
        state.marks.clear();
        state.lanes = None;
        state.lanes_lost = state.hints;
    }

    /// Where tasks for these sets may be; `in_full` also where nothing was found before.
    pub(super) fn ranges(&self, sets: &[&CapabilitySet], in_full: bool) -> Ranges {
        let state = self.lock();
        let mut ranges =
            Ranges { begun: state.hints, blind: state.lanes.is_none(), ..Ranges::default() };
        for (set_no, set) in (1..).zip(sets) {
            for (lane, required) in state.lanes.iter().flatten() {
                if !set.satisfies(required.as_slice()) {
                    continue;
                }
                for priority in PRIORITIES {
                    let mark = state.marks.get(&(*lane, priority));
                    let low = if in_full { 0 } else { mark.map_or(0, |mark| mark.low) };
                    if low < NOTHING {
                        ranges.sets.push(set_no);
                        ranges.lanes.push(*lane);
                        ranges.priorities.push(priority);
                        ranges.lows.push(low);
                    }
                }
            }
        }
        ranges
    }

    /// Where the queue begins for this set; `None` where that is not known, or nothing is ready, or several lanes have a part
    /// in it.
    pub(super) fn first(&self, set: &CapabilitySet) -> Option<First> {
        let ranges = self.ranges(&[set], false);
        let priority = *ranges.priorities.iter().max()?;
        let mut there = (0..ranges.lanes.len()).filter(|n| ranges.priorities[*n] == priority);
        let n = there.next().filter(|_| there.next().is_none() && !ranges.blind)?;
        let (lane_id, low) = (ranges.lanes[n], ranges.lows[n]);
        Some(First { lane_id, priority, low, begun: ranges.begun })
    }

    /// A claim found nothing before this `seq` there, but for what others had locked: should they give it back without a
    /// hint, the poll finds it.
    pub(super) fn have_taken_from(&self, first: &First, seq: i64) {
        self.raise(first.lane_id, first.priority, seq, first.begun);
    }

    /// This is the first ready task there for who began to look at this hint.
    fn raise(&self, lane_id: i64, priority: i16, seq: i64, begun: u64) {
        let state = &mut *self.lock();
        if state.forgotten <= begun {
            state.marks.entry((lane_id, priority)).or_default().raise(seq, begun);
        }
    }

    /// True when something may be ready for this set. Also while the lanes are not known.
    pub(super) fn may_have(&self, set: &CapabilitySet) -> bool {
        !self.knows_lanes() || !self.ranges(&[set], false).is_empty()
    }

    /// What a read found, but for what is `gone` since: marks move to what is first in each range, and where nothing is to
    /// [`NOTHING`], unless a hint said more meanwhile.
    pub(super) fn found(&self, Found { ranges, rows, depth }: &Found, gone: &HashSet<TaskId>) {
        // By set: how many rows, and the priority of the last, below which nothing was looked at when it is full.
        let mut ends: HashMap<i32, (i64, i16)> = HashMap::new();
        // By range: its first row that is not gone, and its last row.
        let mut found: HashMap<(i32, i64, i16), (Option<i64>, i64)> = HashMap::new();
        for row in rows {
            let end = ends.entry(row.set_no).or_insert((0, 0));
            *end = (end.0 + 1, row.priority);
            let range = found.entry((row.set_no, row.lane_id, row.priority)).or_default();
            range.1 = row.seq;
            if range.0.is_none() && !gone.contains(&row.task_id) {
                range.0 = Some(row.seq);
            }
        }
        let state = &mut *self.lock();
        if state.forgotten > ranges.begun {
            return;
        }
        for n in 0..ranges.sets.len() {
            let (set, lane, priority) = (ranges.sets[n], ranges.lanes[n], ranges.priorities[n]);
            let is_cut =
                ends.get(&set).is_some_and(|(count, last)| count >= depth && priority <= *last);
            let first = match found.get(&(set, lane, priority)) {
                Some((Some(first), _)) => *first,
                Some((None, last)) if is_cut => *last + 1,
                None if is_cut => continue,
                _ => NOTHING,
            };
            state.marks.entry((lane, priority)).or_default().raise(first, ranges.begun);
        }
    }

    /// Every mark, with what it hides.
    fn marks(&self) -> (Vec<i64>, Vec<i16>, Vec<i64>) {
        let state = self.lock();
        let mut marks = (Vec::new(), Vec::new(), Vec::new());
        for ((lane, priority), mark) in &state.marks {
            if mark.low > 0 {
                marks.0.push(*lane);
                marks.1.push(*priority);
                marks.2.push(mark.low);
            }
        }
        marks
    }
}

/// What a read of candidates found, at most `depth` rows a set.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) ranges: Ranges,
    pub(super) rows: Vec<ReadyRow>,
    pub(super) depth: i64,
}

/// A row of `claim_pull_2_ready`.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadyRow {
    set_no: i32,
    lane_id: i64,
    priority: i16,
    seq: i64,
    task_id: TaskId,
}

impl From<&Row> for ReadyRow {
    fn from(row: &Row) -> Self {
        Self {
            set_no: get(row, "set_no"),
            lane_id: get(row, "lane_id"),
            priority: get(row, "priority"),
            seq: get(row, "seq"),
            task_id: TaskId(get::<Uuid>(row, "task_id")),
        }
    }
}

impl Found {
    /// Candidates of each set, in order; sets are counted from 0.
    pub(super) fn by_set(&self, sets: usize) -> Vec<Vec<Candidate>> {
        let mut found = vec![Vec::new(); sets];
        for &ReadyRow { set_no, task_id, lane_id, priority, .. } in &self.rows {
            let set_no = usize::try_from(set_no).unwrap_or(0);
            if let Some(set) = set_no.checked_sub(1).and_then(|n| found.get_mut(n)) {
                set.push(Candidate { task_id, lane_id, priority });
            }
        }
        found
    }
}

impl Store {
    /// A commit of this or of another process made these ready.
    pub fn ready_at(&self, places: &[ReadyPlace]) {
        self.ready().hint(places);
    }

    /// A commit made something ready, nobody says where: everything is read from its start again.
    pub fn ready_somewhere(&self) {
        self.ready().forget();
    }

    pub(super) async fn read_lanes<C: GenericClient>(&self, client: &C) -> Result<(), StoreError> {
        let begun = self.ready().begun();
        self.ready().set_lanes(&LIST_LANES.rows(client, &[]).await?, begun);
        Ok(())
    }

    /// The poll that is the truth behind all hints, for these sessions that wait: reads the lanes, and looks for ready tasks
    /// in front of those from which claims read, which the next claim finds, for lanes where nothing is left, and for pins.
    /// Returns the sessions whose agents something is pinned to. One transaction.
    pub async fn look_below(&self, sessions: &[SessionId]) -> Result<Vec<SessionId>, StoreError> {
        let agents: HashMap<String, SessionId> = sessions
            .iter()
            .filter_map(|s| Some((self.ledger().registered(*s)?.agent_id, *s)))
            .collect();
        let names: Vec<&String> = agents.keys().collect();
        let begun = self.ready().begun();
        let (lanes, priorities, lows) = self.ready().marks();
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let marks: Params<'_> = &[&lanes, &priorities, &lows];
        let pins: Params<'_> = &[&names, &1_i64];
        let (known, found, pinned) = tokio::try_join!(
            biased;
            LIST_LANES.rows(&tx, &[]),
            FIND_READY_BELOW.rows(&tx, marks),
            CLAIM_PULL_2_PINNED.rows(&tx, pins),
        )?;
        commit(tx).await?;
        self.ready().set_lanes(&known, begun);
        let mut below: Vec<ReadyPlace> = Vec::new();
        for row in &found {
            let (lane_id, priority) = (get(row, "lane_id"), get(row, "priority"));
            match get(row, "seq") {
                Some(seq) => below.push(ReadyPlace { lane_id, priority, seq }),
                None => self.ready().raise(lane_id, priority, NOTHING, begun),
            }
        }
        self.ready().hint(&below);
        let pinned = pinned.iter().filter_map(|r| agents.get(get::<&str>(r, "pinned_to")).copied());
        Ok(pinned.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: i64 = 2;

    fn ready() -> (Ready, CapabilitySet) {
        let ready = Ready::default();
        ready.lock().lanes = Some(HashMap::from([(1, CapabilitySet::default())]));
        (ready, CapabilitySet::default())
    }

    fn row(priority: i16, seq: i64) -> ReadyRow {
        ReadyRow { set_no: 1, lane_id: 1, priority, seq, task_id: id(seq) }
    }

    fn id(seq: i64) -> TaskId {
        TaskId(Uuid::from_u128(u128::try_from(seq).unwrap()))
    }

    fn found(ranges: Ranges, rows: &[ReadyRow]) -> Found {
        Found { ranges, rows: rows.to_vec(), depth: K }
    }

    fn mark(ready: &Ready, ranges: Ranges, rows: &[ReadyRow]) {
        ready.found(&found(ranges, rows), &HashSet::new());
    }

    fn places(ready: &Ready, set: &CapabilitySet) -> Vec<(i16, i64)> {
        let ranges = ready.ranges(&[set], false);
        ranges.priorities.into_iter().zip(ranges.lows).collect()
    }

    fn hint(ready: &Ready, priority: i16, seq: i64) {
        ready.hint(&[ReadyPlace { lane_id: 1, priority, seq }]);
    }

    #[test]
    fn reads_begin_at_the_first_that_was_seen_and_skip_what_is_empty() {
        let (ready, set) = ready();
        assert_eq!(places(&ready, &set), [(3, 0), (2, 0), (1, 0), (0, 0)]);
        let ranges = ready.ranges(&[&set], false);
        // Full: what is below the last row's priority was not looked at.
        mark(&ready, ranges, &[row(2, 50), row(1, 70)]);
        assert_eq!(places(&ready, &set), [(2, 50), (1, 70), (0, 0)]);
        let ranges = ready.ranges(&[&set], false);
        mark(&ready, ranges, &[row(1, 80)]);
        assert_eq!(places(&ready, &set), [(1, 80)]);
        mark(&ready, ready.ranges(&[&set], false), &[]);
        assert!(!ready.may_have(&set));
        assert_eq!(ready.ranges(&[&set], true).lows, [0; 4], "in full it looks everywhere");
    }

    #[test]
    fn what_becomes_ready_lowers_the_mark_also_during_a_read() {
        let (ready, set) = ready();
        mark(&ready, ready.ranges(&[&set], false), &[]);
        hint(&ready, 1, 30);
        assert_eq!(places(&ready, &set), [(1, 30)]);
        // A read has begun, whose snapshot does not see what is hinted now.
        let ranges = ready.ranges(&[&set], false);
        hint(&ready, 1, 10);
        hint(&ready, 1, 90);
        mark(&ready, ranges, &[row(1, 60)]);
        assert_eq!(places(&ready, &set), [(1, 10)], "the later answer must not hide it");
        mark(&ready, ready.ranges(&[&set], false), &[row(1, 60)]);
        assert_eq!(places(&ready, &set), [(1, 60)], "a read that began after it may");
    }

    #[test]
    fn a_hint_before_the_first_mark_is_not_lost() {
        let (ready, set) = ready();
        let ranges = ready.ranges(&[&set], false);
        hint(&ready, 2, 20);
        mark(&ready, ranges, &[]);
        assert_eq!(places(&ready, &set), [(2, 20)]);
    }

    #[test]
    fn forgetting_outlives_a_read_that_had_begun() {
        let (ready, set) = ready();
        let ranges = ready.ranges(&[&set], false);
        ready.forget();
        mark(&ready, ranges, &[row(1, 60)]);
        ready.lock().lanes = Some(HashMap::from([(1, CapabilitySet::default())]));
        assert_eq!(places(&ready, &set).len(), 4);
        assert!(ready.may_have(&set));
        hint(&ready, 0, 1);
        assert!(ready.knows_lanes());
        ready.hint(&[ReadyPlace { lane_id: 2, priority: 0, seq: 1 }]);
        assert!(!ready.knows_lanes(), "a lane that is not known yet has them read again");
    }

    #[test]
    fn what_was_taken_is_not_read_again() {
        let (ready, set) = ready();
        let read = found(ready.ranges(&[&set], false), &[row(2, 50), row(2, 60)]);
        ready.found(&read, &HashSet::new());
        ready.found(&read, &[id(50)].into());
        assert_eq!(places(&ready, &set)[0], (2, 60), "the other was lost");
        ready.found(&read, &[id(50), id(60)].into());
        assert_eq!(places(&ready, &set), [(2, 61), (1, 0), (0, 0)], "there was no more to see");
        let read = found(ready.ranges(&[&set], false), &[row(2, 70)]);
        hint(&ready, 2, 55);
        ready.found(&read, &[id(70)].into());
        assert_eq!(places(&ready, &set), [(2, 55)], "released meanwhile; else nothing is left");
        let read = found(ready.ranges(&[&set], false), &[row(2, 55)]);
        ready.found(&read, &[id(55)].into());
        assert!(!ready.may_have(&set));
    }
}
