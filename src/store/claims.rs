//! The two claims: by dequeue and by dispatch. `sql/claim_*.sql` are their statements, in order.
//!
//! Each is one short transaction. Its first statement locks who wants work; later ones, whose snapshots are younger than
//! those locks, count what they hold, so that a limit is exact over all replicas. Candidates are read without locks,
//! matched here, and only what is going to be taken is locked. Only what the last statement returns has been taken.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{GenericClient, begin, commit},
    error::retry,
    rows::get,
    statement::{
        CHECK_SESSIONS, CLAIM_PULL_1_LOCK, CLAIM_PULL_2_COUNT, CLAIM_PULL_2_PINNED,
        CLAIM_PULL_2_READY, CLAIM_PULL_3_TAKE, CLAIM_PUSH_1_LOCK, CLAIM_PUSH_2_COUNT,
        CLAIM_PUSH_2_PINNED, CLAIM_PUSH_2_READY, CLAIM_PUSH_3_TAKE, Params,
    },
};
use crate::model::{Actor, CapabilitySet, HostAgentId, Lease, SessionId, TaskId};

/// An agent that waits for one task.
#[derive(Debug, Clone)]
pub struct Waiter {
    /// The session under which it asks.
    pub session: SessionId,
    /// What it asks with, if less than what it registered.
    pub capabilities: Option<CapabilitySet>,
}

/// What came of a claim for waiting agents.
#[derive(Debug, Default)]
pub struct PullClaims {
    /// `(place in the request, task, lease)`.
    pub claimed: Vec<(usize, TaskId, Lease)>,
    /// Places of those whose session has ended.
    pub ended: Vec<usize>,
    /// True when somebody went without although there may be something: scan again soon.
    pub shortfall: bool,
}

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

/// At most this many waiters share one transaction.
const WAITERS: usize = 64;
/// At most this many tasks are taken for one host agent in one transaction.
const SLOTS: i64 = 64;

/// In one claim: rows that others have locked are passed over so often.
const ROUNDS: u32 = 10;

/// How far down the candidates a round begins: the first rows again at first, then, should somebody have locked many in a
/// row, twice as far down each time.
fn begins_at(round: u32, candidates: usize, wanted: usize) -> usize {
    let jump = (1_usize << round.saturating_sub(1)) - 1;
    jump.min(candidates.saturating_sub(wanted))
}

/// How many candidates a round reads: enough behind those that were lost to others before.
fn depth(wanted: i64, gone: usize, round: u32) -> i64 {
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

/// Candidates of each set, in order.
fn by_set(rows: &[Row]) -> HashMap<i32, Vec<Uuid>> {
    let mut sets: HashMap<i32, Vec<Uuid>> = HashMap::new();
    for row in rows {
        sets.entry(get(row, "set_no")).or_default().push(get(row, "task_id"));
    }
    sets
}

impl Store {
    /// Claims one task for each agent that waits, first come first served, at most 64 of them; takes `created` tasks in mode
    /// `http_pull` or `undecided`, and those pinned to the agent, pinned first.
    pub async fn claim_for_agents(&self, waiters: &[Waiter]) -> Result<PullClaims, StoreError> {
        let (now, later) = waiters.split_at(waiters.len().min(WAITERS));
        let mut claims = retry!(self.pull_once(now).await)?;
        claims.shortfall |= !later.is_empty();
        Ok(claims)
    }

    async fn pull_once(&self, waiters: &[Waiter]) -> Result<PullClaims, StoreError> {
        let mut claims = PullClaims::default();
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let sessions: Vec<Uuid> = waiters.iter().map(|w| w.session.0).collect();

        let locked: HashMap<Uuid, Row> = CLAIM_PULL_1_LOCK
            .rows(&tx, &[&sessions])
            .await?
            .into_iter()
            .map(|row| (get(&row, "session_id"), row))
            .collect();
        if locked.len() < sessions.iter().collect::<HashSet<_>>().len() {
            self.explain_unlocked(&tx, waiters, &locked, &mut claims).await?;
        }
        if locked.is_empty() {
            return Ok(claims);
        }

        let ids: Vec<Uuid> = locked.keys().copied().collect();
        let agents: Vec<&str> = locked.values().map(|row| get(row, "agent_id")).collect();
        let (sets, numbers) = intern_sets(waiters.iter().map(|w| match locked.get(&w.session.0) {
            Some(row) => {
                let registered = CapabilitySet::from(get::<Vec<String>>(row, "capabilities"));
                w.capabilities
                    .as_ref()
                    .map_or(registered.clone(), |asked| asked.intersection(&registered))
            }
            None => CapabilitySet::default(),
        }));
        let wanted = i64::try_from(waiters.len()).unwrap_or(i64::MAX);
        let mut held: HashMap<Uuid, i64> = HashMap::new();
        // Tasks that this claim has, or lost to others.
        let mut gone: HashSet<Uuid> = HashSet::new();
        let mut served: HashSet<usize> = HashSet::new();
        for round in 0..ROUNDS {
            let depth = depth(wanted, gone.len(), round);
            let (p1, p2, p3): (Params<'_>, Params<'_>, Params<'_>) =
                (&[&ids], &[&agents, &depth], &[&sets, &depth]);
            // Sent together: one round trip. What this claim itself took by now is counted, too.
            let (counted, pinned, ready) = tokio::try_join!(
                CLAIM_PULL_2_COUNT.rows(&tx, p1),
                CLAIM_PULL_2_PINNED.rows(&tx, p2),
                CLAIM_PULL_2_READY.rows(&tx, p3),
            )?;
            held.clear();
            held.extend(counted.iter().map(|r| (get::<Uuid>(r, "holder"), get::<i64>(r, "held"))));
            let ready = by_set(&ready);

            // (place, task, session, agent), each task at most once
            let mut pairs: Vec<(usize, Uuid, Uuid, &str)> = Vec::new();
            for (place, waiter) in waiters.iter().enumerate() {
                let Some(row) = locked.get(&waiter.session.0) else { continue };
                let agent: &str = get(row, "agent_id");
                let held = held.entry(waiter.session.0).or_default();
                if served.contains(&place) || *held >= i64::from(get::<i32>(row, "max_concurrency"))
                {
                    continue;
                }
                let mine = pinned.iter().filter(|p| get::<&str>(p, "pinned_to") == agent);
                let candidates: Vec<Uuid> = mine
                    .map(|p| get::<Uuid>(p, "task_id"))
                    .chain(ready.get(&numbers[place]).into_iter().flatten().copied())
                    .filter(|task| !gone.contains(task))
                    .collect();
                if let Some(&task) = candidates.get(begins_at(round, candidates.len(), 1)) {
                    gone.insert(task);
                    *held += 1;
                    pairs.push((place, task, waiter.session.0, agent));
                }
            }
            if pairs.is_empty() {
                break;
            }

            let tasks: Vec<Uuid> = pairs.iter().map(|p| p.1).collect();
            let holders: Vec<Uuid> = pairs.iter().map(|p| p.2).collect();
            let names: Vec<&str> = pairs.iter().map(|p| p.3).collect();
            let rows = CLAIM_PULL_3_TAKE.rows(&tx, &[&tasks, &holders, &names]).await?;
            for row in &rows {
                let task: Uuid = get(row, "task_id");
                if let Some((place, ..)) = pairs.iter().find(|p| p.1 == task) {
                    served.insert(*place);
                    claims.claimed.push((*place, TaskId(task), Lease(get(row, "lease"))));
                }
            }
            let complete = rows.len() == pairs.len();
            claims.shortfall |= !complete;
            if complete {
                break;
            }
        }
        if !claims.claimed.is_empty() {
            commit(tx).await?;
        }
        Ok(claims)
    }

    /// A session that could not be locked has ended, or may not claim, or is being changed right now.
    async fn explain_unlocked<C: GenericClient>(
        &self,
        client: &C,
        waiters: &[Waiter],
        locked: &HashMap<Uuid, Row>,
        claims: &mut PullClaims,
    ) -> Result<(), StoreError> {
        let sessions: Vec<Uuid> =
            waiters.iter().map(|w| w.session.0).filter(|s| !locked.contains_key(s)).collect();
        let rows = CHECK_SESSIONS.rows(client, &[&sessions]).await?;
        for (place, waiter) in waiters.iter().enumerate() {
            if locked.contains_key(&waiter.session.0) {
                continue;
            }
            match rows.iter().find(|r| get::<Uuid>(r, "session_id") == waiter.session.0) {
                Some(row) if !get::<bool>(row, "ended") => {
                    claims.shortfall |= !get::<bool>(row, "barred");
                }
                Some(_) | None => claims.ended.push(place),
            }
        }
        Ok(())
    }

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

            let mut pairs: Vec<(Uuid, i64)> = Vec::new();
            for (place, row) in locked.iter().enumerate() {
                let host_agent: i64 = get(row, "host_agent_id");
                let free = i64::from(get::<i32>(row, "max_concurrency"))
                    - held.get(&host_agent).copied().unwrap_or(0);
                let left = usize::try_from(free.clamp(0, SLOTS)).unwrap_or(0);
                let mine = pinned
                    .iter()
                    .filter(|pin| pin_fits(pin, row))
                    .map(|pin| get::<Uuid>(pin, "task_id"));
                let ready = ready.get(&numbers[place]).into_iter().flatten().copied();
                let candidates: Vec<Uuid> =
                    mine.chain(ready).filter(|task| !gone.contains(task)).collect();
                let begin = begins_at(round, candidates.len(), left);
                for task in candidates.into_iter().skip(begin).take(left) {
                    gone.insert(task);
                    pairs.push((task, host_agent));
                }
            }
            if pairs.is_empty() {
                break;
            }

            let tasks: Vec<Uuid> = pairs.iter().map(|p| p.0).collect();
            let slots: Vec<i64> = pairs.iter().map(|p| p.1).collect();
            let rows = CLAIM_PUSH_3_TAKE
                .rows(&tx, &[&tasks, &slots, &session.0, &actor.to_string()])
                .await?;
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
        }
        Ok((claims, shortfall))
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
