//! The claim by dispatch; that by dequeue is in [`super::work`] and [`super::taking`]. `sql/claim_*.sql` are their
//! statements, in order.
//!
//! Each is one short transaction. Its first statement locks who wants work; later ones, whose snapshots are younger than
//! those locks, count what they hold, so that a limit is exact over all replicas. Candidates are read without locks,
//! matched here, and only what is going to be taken is locked. Only what the last statement returns has been taken.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{begin, commit},
    error::retry,
    journal::{Journal, Line},
    rows::get,
    statement::{
        CLAIM_PUSH_1_LOCK, CLAIM_PUSH_2_COUNT, CLAIM_PUSH_2_PINNED, CLAIM_PUSH_2_READY,
        CLAIM_PUSH_3_TAKE, Params,
    },
    traced::Traced,
};
use crate::model::{
    Actor, CapabilitySet, EventType, HostAgentId, Lease, SessionId, Status, TaskId,
};

/// A task taken for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushClaim {
    /// The task.
    pub task_id: TaskId,
    /// Its new lease.
    pub lease: Lease,
    /// The session that holds it.
    pub session: SessionId,
    /// The slot that it takes.
    pub host_agent: HostAgentId,
}

/// At most this many tasks are taken for one host agent in one transaction.
const SLOTS: i64 = 64;

/// In one claim: rows that others have locked are passed over so often.
pub(super) const ROUNDS: u32 = 10;

/// How far down the candidates a round begins: the first rows again at first, then, should somebody have locked many in a
/// row, twice as far down each time; behind those that are known to be `passed` over, as far as there are enough.
pub(super) fn begins_at(round: u32, passed: usize, candidates: usize, wanted: usize) -> usize {
    let jump = (1_usize << round.saturating_sub(1)) - 1;
    (jump + passed).min(candidates.saturating_sub(wanted))
}

/// How many candidates a round reads: enough behind those that were lost to others before.
pub(super) fn depth(wanted: i64, gone: usize, round: u32) -> i64 {
    wanted + i64::try_from(gone).unwrap_or(i64::MAX) + (1_i64 << round)
}

/// Distinct sets of capabilities, and which one each asker has.
fn intern_sets(offers: impl Iterator<Item = CapabilitySet>) -> (serde_json::Value, Vec<i32>) {
    let mut sets: Vec<CapabilitySet> = Vec::new();
    let numbers = offers
        .map(|offer| {
            let place = sets.iter().position(|s| *s == offer).unwrap_or_else(|| {
                sets.push(offer);
                sets.len() - 1
            });
            // SQL counts from 1; there are at most as many sets as askers.
            i32::try_from(place + 1).unwrap_or(i32::MAX)
        })
        .collect();
    (serde_json::json!(sets), numbers)
}

/// Candidates of each set, in order, each with its lane.
fn by_set(rows: &[Row]) -> HashMap<i32, Vec<(Uuid, Option<i64>)>> {
    let mut sets: HashMap<i32, Vec<(Uuid, Option<i64>)>> = HashMap::new();
    for row in rows {
        sets.entry(get(row, "set_no"))
            .or_default()
            .push((get(row, "task_id"), get(row, "lane_id")));
    }
    sets
}

impl Store {
    /// Phase 1: claims for host agents that this replica reaches, up to their free slots; takes `created` tasks in mode
    /// `ssh_cli` or `undecided`, and those pinned to the host, pinned first. True beside them when there may be more.
    pub async fn claim_for_hosts(
        &self,
        reachable: &[HostAgentId],
        session: SessionId,
        actor: &Actor,
    ) -> Result<(Vec<PushClaim>, bool), StoreError> {
        if reachable.is_empty() {
            return Ok((Vec::new(), false));
        }
        retry!(self.push_once(reachable, session, actor).await)
    }

    async fn push_once(
        &self,
        reachable: &[HostAgentId],
        session: SessionId,
        actor: &Actor,
    ) -> Result<(Vec<PushClaim>, bool), StoreError> {
        let mut client = self.client().await?;
        let mut journal = Journal::default();
        let tx = begin(&mut client).await?;
        let ids: Vec<i64> = reachable.iter().map(|id| id.0).collect();
        let locked = CLAIM_PUSH_1_LOCK.rows(&tx, &[&ids, &session.0]).await?;
        if locked.is_empty() {
            return Ok((Vec::new(), false));
        }

        let ids: Vec<i64> = locked.iter().map(|row| get(row, "host_agent_id")).collect();
        let names: Vec<String> = locked
            .iter()
            .flat_map(|row| {
                let (host, agent): (&str, &str) = (get(row, "host_id"), get(row, "agent_type"));
                [host.to_owned(), format!("{host}/{agent}")]
            })
            .collect();
        let (sets, numbers) = intern_sets(
            locked.iter().map(|row| CapabilitySet::from(get::<Vec<String>>(row, "capabilities"))),
        );
        // Two host agents with one set must find enough for both.
        let wanted = SLOTS * i64::try_from(locked.len()).unwrap_or(1).min(8);
        let mut claims: Vec<PushClaim> = Vec::new();
        // Tasks that this claim has, or lost to others.
        let mut gone: HashSet<Uuid> = HashSet::new();
        let mut shortfall = false;
        for round in 0..ROUNDS {
            let depth = depth(wanted, gone.len(), round);
            let (p1, p2, p3): (Params<'_>, Params<'_>, Params<'_>) =
                (&[&ids], &[&names, &depth], &[&sets, &depth]);
            let (held, pinned, ready) = tokio::try_join!(
                CLAIM_PUSH_2_COUNT.rows(&tx, p1),
                CLAIM_PUSH_2_PINNED.rows(&tx, p2),
                CLAIM_PUSH_2_READY.rows(&tx, p3),
            )?;
            let held: HashMap<i64, i64> =
                held.iter().map(|r| (get(r, "host_agent_id"), get(r, "held"))).collect();
            let ready = by_set(&ready);

            let mut pairs: Vec<(Uuid, i64, Option<i64>)> = Vec::new();
            for (place, row) in locked.iter().enumerate() {
                let host_agent: i64 = get(row, "host_agent_id");
                let free = i64::from(get::<i32>(row, "max_concurrency"))
                    - held.get(&host_agent).copied().unwrap_or(0);
                let left = usize::try_from(free.clamp(0, SLOTS)).unwrap_or(0);
                let mine = pinned
                    .iter()
                    .filter(|pin| pin_fits(pin, row))
                    .map(|pin| (get::<Uuid>(pin, "task_id"), None));
                let ready = ready.get(&numbers[place]).into_iter().flatten().copied();
                let candidates: Vec<(Uuid, Option<i64>)> =
                    mine.chain(ready).filter(|(task, _)| !gone.contains(task)).collect();
                let begin = begins_at(round, 0, candidates.len(), left);
                for (task, lane) in candidates.into_iter().skip(begin).take(left) {
                    gone.insert(task);
                    pairs.push((task, host_agent, lane));
                }
            }
            if pairs.is_empty() {
                break;
            }

            let tasks: Vec<Uuid> = pairs.iter().map(|p| p.0).collect();
            let slots: Vec<i64> = pairs.iter().map(|p| p.1).collect();
            let lanes: Vec<Option<i64>> = pairs.iter().map(|p| p.2).collect();
            let rows = CLAIM_PUSH_3_TAKE
                .rows(&tx, &[&tasks, &slots, &session.0, &actor.to_string(), &lanes])
                .await?;
            for row in &rows {
                journal.note(|| Line {
                    host: Some(get(row, "host")),
                    ..claimed_line(row, actor.to_string())
                });
            }
            claims.extend(rows.iter().map(|row| PushClaim {
                task_id: TaskId(get::<Uuid>(row, "task_id")),
                lease: Lease(get(row, "lease")),
                session,
                host_agent: HostAgentId(get(row, "host_agent_id")),
            }));
            let complete = rows.len() == pairs.len();
            shortfall |= !complete;
            if complete {
                break;
            }
        }
        if !claims.is_empty() {
            commit(tx).await?;
            journal.write();
        }
        Ok((claims, shortfall))
    }
}

/// The log line of a claim, by a row of its last statement.
pub(super) fn claimed_line(row: &Row, actor: String) -> Line {
    Line {
        task_id: get(row, "task_id"),
        event: EventType::Claimed.to_string(),
        from: Some(get(row, "from_status")),
        status: Some(Status::Assigned.to_string()),
        lease: Lease(get(row, "lease")),
        attempt: Some(get(row, "attempt")),
        actor,
        traced: Traced::claim(row),
        ..Line::default()
    }
}

/// Whether a pinned task is for this host agent: named in full, or by its host and able (or no CLI of the host is).
fn pin_fits(pin: &Row, host_agent: &Row) -> bool {
    let target: &str = get(pin, "pinned_to");
    let (host, agent): (&str, &str) = (get(host_agent, "host_id"), get(host_agent, "agent_type"));
    match target.split_once('/') {
        Some((h, a)) => h == host && a == agent,
        None => {
            let offered = CapabilitySet::from(get::<Vec<String>>(host_agent, "capabilities"));
            target == host
                && (!get::<bool>(pin, "servable")
                    || offered.satisfies(&get::<Vec<String>>(pin, "required")))
        }
    }
}
