//! What agents do to the queue: leases end and tasks are claimed, for all that ask at once, in one transaction.
//!
//! The first statement locks the sessions that want work; later ones, whose snapshots are younger than those locks, say
//! what they hold, so that a limit is exact over all replicas. Candidates are read without locks, matched in memory, and
//! only what is going to be taken is locked. Only what the last statement returns has been taken. What does not need
//! another's answer is sent together.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    EndLease, Ended, Store, StoreError,
    asking::{Asking, Assigned, Candidates, Pair, TASKS},
    claims::{ROUNDS, claimed_line},
    connection::{GenericClient, Transaction, commit, open},
    crowd::Chosen,
    ending::Ending,
    error::retry,
    journal::Journal,
    leases::HeldLease,
    ledger::Claimed,
    rows::{self, get},
    statement::{
        CHECK_SESSIONS, CLAIM_PULL_1_LOCK, CLAIM_PULL_2_HELD, CLAIM_PULL_2_PINNED,
        CLAIM_PULL_2_READY, CLAIM_PULL_3_TAKE, CLAIM_PULL_4_SWITCH, COMPLETE_LEASES, END_LEASES,
        GET_TASKS, KEEP_CLAIMS, Params,
    },
};
use crate::model::{Actor, CapabilitySet, Lease, SessionId, Task, TaskId};

/// An agent that waits for work.
#[derive(Debug, Clone)]
pub struct Waiter {
    /// The session under which it asks.
    pub session: SessionId,
    /// What it asks with, if less than what it registered.
    pub capabilities: Option<CapabilitySet>,
    /// How many tasks it takes at most.
    pub max_tasks: usize,
    /// Names the request: the same one again is answered with the same tasks while they are leased.
    pub claim_id: Uuid,
    /// The agent named the request, so it may have been answered before.
    pub repeatable: bool,
    /// When it asked: its last sign of life that is certain. It may have died since.
    pub asked: Instant,
}

impl Waiter {
    /// One that takes one task with all that it registered.
    pub fn one(session: SessionId) -> Self {
        Self {
            session,
            capabilities: None,
            max_tasks: 1,
            claim_id: Uuid::now_v7(),
            repeatable: false,
            asked: Instant::now(),
        }
    }
}

/// What came of a claim for waiting agents.
#[derive(Debug, Default)]
pub struct PullClaims {
    /// `(place in the request, task, lease)`.
    pub claimed: Vec<(usize, TaskId, Lease)>,
    /// The tasks, as they are now.
    pub tasks: HashMap<TaskId, Task>,
    /// Places of those whose request had been answered before, with the same tasks.
    pub repeated: Vec<usize>,
    /// Places of those whose session has ended.
    pub ended: Vec<usize>,
    /// Places of those that may not take anything now: they drain, or hold all that they may.
    pub barred: Vec<usize>,
    /// True when somebody went without although there may be something: scan again soon.
    pub shortfall: bool,
}

/// What came of leases that end and agents that want work.
#[derive(Debug, Default)]
pub struct Worked {
    /// What came of each end, in order.
    pub ended: Vec<Ended>,
    /// What came of each waiter, and the tasks of both.
    pub claims: PullClaims,
}

impl Store {
    /// Claims for agents that wait, first come first served; takes `created` tasks in mode `http_pull` or `undecided`, and
    /// those pinned to the agent, pinned first. `in_full` looks everywhere, not only where something may be by what this
    /// process remembers. Without anything to take, nothing is locked.
    pub async fn claim_for_agents(
        &self,
        waiters: &[Waiter],
        in_full: bool,
    ) -> Result<PullClaims, StoreError> {
        let mut unheard = false;
        retry!(self.claim_once(waiters, in_full, &mut unheard).await)
    }

    /// `unheard` is true once the commit of an earlier try was not heard of: any of them may have something already.
    async fn claim_once(
        &self,
        waiters: &[Waiter],
        in_full: bool,
        unheard: &mut bool,
    ) -> Result<PullClaims, StoreError> {
        let client = self.client().await?;
        let asking = self.asking(&client, waiters).await?;
        if in_full || !self.ready().knows_lanes() {
            self.read_lanes(&client).await?;
        }
        let candidates = self.candidates(&client, &asking, in_full, 0, 0).await?;
        let blind = candidates.is_blind();
        drop(client);
        // Those that would get something, and those that may have something already.
        let mut rooms = waiters.iter().map(|w| (w.session, usize::MAX)).collect();
        let Assigned { pairs, passed_over } = asking.assign(
            waiters,
            &candidates,
            &mut rooms,
            &HashSet::new(),
            &mut candidates.reading.taken(),
            0,
        );
        let fed: HashSet<usize> = pairs.iter().map(|pair| pair.place).collect();
        let (places, chosen): (Vec<usize>, Vec<Waiter>) = waiters
            .iter()
            .enumerate()
            .filter(|(place, waiter)| {
                let may_have = waiter.repeatable || *unheard;
                fed.contains(place) || may_have || asking.waiters[*place].is_none()
            })
            .map(|(place, waiter)| (place, waiter.clone()))
            .unzip();
        if chosen.is_empty() {
            return Ok(PullClaims { shortfall: blind || passed_over, ..PullClaims::default() });
        }
        let mut claims =
            self.work_once(&[], Duration::ZERO, &chosen, Some(candidates), unheard).await?.claims;
        for claim in &mut claims.claimed {
            claim.0 = places[claim.0];
        }
        for list in [&mut claims.repeated, &mut claims.ended, &mut claims.barred] {
            list.iter_mut().for_each(|place| *place = places[*place]);
        }
        // Who was passed over for a candidate that went to nobody.
        claims.shortfall |=
            passed_over || (blind || !claims.barred.is_empty()) && places.len() < waiters.len();
        Ok(claims)
    }

    /// Leases end, and agents get work, in one transaction; a task may be named once. `backoff` is the wait before the first
    /// retry. Answers with the tasks of both.
    pub async fn work(
        &self,
        ends: &[EndLease],
        backoff: Duration,
        waiters: &[Waiter],
    ) -> Result<Worked, StoreError> {
        let mut unheard = false;
        retry!(self.work_once(ends, backoff, waiters, None, &mut unheard).await)
    }

    /// `unheard` is true once the commit of an earlier try was not heard of.
    async fn work_once(
        &self,
        ends: &[EndLease],
        backoff: Duration,
        waiters: &[Waiter],
        candidates: Option<Candidates>,
        unheard: &mut bool,
    ) -> Result<Worked, StoreError> {
        // On the heap: large, and once for all that ask.
        let working = Box::pin(self.work_in_one(ends, backoff, waiters, candidates, unheard));
        let result = working.await;
        if result.is_err() && !waiters.is_empty() {
            self.ledger().doubt(waiters.iter().map(|w| w.session));
            // What it chose may be ready still, and others have read past it.
            self.ready().forget();
        }
        result
    }

    async fn work_in_one(
        &self,
        ends: &[EndLease],
        backoff: Duration,
        waiters: &[Waiter],
        candidates: Option<Candidates>,
        unheard: &mut bool,
    ) -> Result<Worked, StoreError> {
        let mut client = self.client().await?;
        for statement in [
            CLAIM_PULL_1_LOCK,
            COMPLETE_LEASES,
            END_LEASES,
            CLAIM_PULL_2_HELD,
            CLAIM_PULL_2_PINNED,
            CLAIM_PULL_2_READY,
            CLAIM_PULL_3_TAKE,
            CLAIM_PULL_4_SWITCH,
            GET_TASKS,
        ] {
            statement.prepare(&client).await?;
        }
        let asking = self.asking(&client, waiters).await?;
        if !waiters.is_empty() && !self.ready().knows_lanes() {
            self.read_lanes(&client).await?;
        }
        let mut sessions: Vec<Uuid> = waiters.iter().map(|w| w.session.0).collect();
        sessions.sort_unstable();
        sessions.dedup();
        let ending = Ending::new(ends, backoff);

        let mut chosen = self.crowd().chosen();
        let mut journal = Journal::default();
        let tx = open(&mut client);
        // One round trip, in this order: sessions are locked first.
        let (_, locked, ended, mut candidates) = tokio::try_join!(
            biased;
            tx.begin_planned(),
            async {
                if sessions.is_empty() { Ok(Vec::new()) } else { CLAIM_PULL_1_LOCK.rows(&tx, &[&sessions]).await }
            },
            ending.rows(&tx),
            async {
                match candidates {
                    Some(candidates) => Ok(candidates),
                    None => self.candidates(&tx, &asking, false, 0, 0).await,
                }
            },
        )?;
        let outcomes = ending.outcomes(&tx, &ended, *unheard, &mut journal).await?;
        let mut worked = Worked { ended: outcomes, ..Worked::default() };
        for row in &ended {
            // A newer state of an issue may have been applied since.
            if get::<&str>(row, "source") != "forgejo"
                && let Some(task) = rows::shown_task(row)?
            {
                worked.claims.tasks.insert(task.task_id, task);
            }
        }
        let unseen = ends.iter().map(|end| end.held.task_id);
        let unseen: Vec<Uuid> =
            unseen.filter(|id| !worked.claims.tasks.contains_key(id)).map(|id| id.0).collect();
        if !unseen.is_empty() {
            show(&mut worked.claims.tasks, &GET_TASKS.rows(&tx, &[&unseen]).await?)?;
        }
        let held = if waiters.is_empty() {
            HashMap::new()
        } else {
            let taking = Taking { waiters, asking: &asking, ends, locked: &locked };
            let claim = (&mut candidates, &mut chosen, &mut *unheard);
            self.take(&tx, taking, claim, &mut worked, &mut journal).await?
        };
        if !tx.is_over() && (!ends.is_empty() || !worked.claims.claimed.is_empty()) {
            *unheard = true;
            commit(tx).await?;
        }
        journal.write();
        let taken = worked.claims.claimed.iter().map(|(_, task_id, _)| *task_id);
        self.have_taken(&candidates, &chosen, taken);
        for (session, held) in held {
            self.ledger().set_held(session, held);
        }
        self.remember_ends(ends, &worked.ended);
        Ok(worked)
    }

    /// Claims for the sessions that are locked. Returns what each of them holds then. Where others are hardly in the way, the
    /// commit goes along with the first take, and what was lost all the same is a shortfall.
    async fn take(
        &self,
        tx: &Transaction<'_>,
        taking: Taking<'_>,
        (candidates, chosen, unheard): (&mut Candidates, &mut Chosen, &mut bool),
        worked: &mut Worked,
        journal: &mut Journal,
    ) -> Result<HashMap<SessionId, Vec<Claimed>>, StoreError> {
        let Taking { waiters, asking, ends, locked } = taking;
        let claims = &mut worked.claims;
        let claimers: HashMap<SessionId, Option<Uuid>> = locked
            .iter()
            .map(|row| (SessionId(get::<Uuid>(row, "session_id")), get(row, "claimer")))
            .collect();
        if waiters.iter().any(|w| !claimers.contains_key(&w.session)) {
            self.explain_unlocked(tx, waiters, &claimers, claims).await?;
        }
        let over: HashSet<(TaskId, Lease)> = ends
            .iter()
            .zip(&worked.ended)
            .filter(|(_, ended)| matches!(ended, Ended::Now(_)))
            .map(|(end, _)| (end.held.task_id, end.held.lease))
            .collect();
        let mut held = self.count(tx, &taking, &claimers, &over).await?;

        let mut served: HashSet<usize> = HashSet::new();
        let mut again: Vec<(usize, HeldLease)> = Vec::new();
        for (place, waiter) in waiters.iter().enumerate() {
            let before = held.get(&waiter.session).into_iter().flatten();
            for claimed in before.filter(|c| c.claim_id == Some(waiter.claim_id)) {
                let (task_id, lease) = (claimed.task_id, claimed.lease);
                again.push((place, HeldLease { task_id, lease, holder: waiter.session }));
            }
        }
        if !again.is_empty() {
            let kept = keep(tx, &again).await?;
            for (place, held) in again.into_iter().filter(|(_, held)| kept.contains(&held.task_id))
            {
                claims.claimed.push((place, held.task_id, held.lease));
                claims.repeated.push(place);
                served.insert(place);
            }
            let kept: Vec<Uuid> = kept.into_iter().map(|id| id.0).collect();
            show(&mut claims.tasks, &GET_TASKS.rows(tx, &[&kept]).await?)?;
        }

        // The same request twice, at once: the second is answered by the first, the next time round.
        let mut requests: HashSet<(SessionId, Uuid)> = HashSet::new();
        for (place, waiter) in waiters.iter().enumerate() {
            if !served.contains(&place) && !requests.insert((waiter.session, waiter.claim_id)) {
                served.insert(place);
                claims.shortfall = true;
            }
        }

        let mut rooms = HashMap::new();
        for (place, (waiter, asking)) in waiters.iter().zip(&asking.waiters).enumerate() {
            // It was forgotten while it asked: it is to ask again.
            claims.shortfall |= asking.is_none() && claimers.contains_key(&waiter.session);
            if let (Some(held), Some((_, registered))) = (held.get(&waiter.session), asking) {
                let room = registered.max_concurrency.saturating_sub(held.len());
                if room == 0 && !served.contains(&place) {
                    claims.barred.push(place);
                }
                rooms.insert(waiter.session, room);
            }
        }
        let lives = self.lives(&taking);

        // Tasks that this claim has, or lost to others.
        let mut gone: HashSet<TaskId> = HashSet::new();
        for round in 0..ROUNDS {
            if round > 0 {
                if !self.ready().knows_lanes() {
                    self.read_lanes(tx).await?;
                }
                *candidates = self.candidates(tx, asking, round > 3, gone.len(), round).await?;
            }
            let assigned = chosen.choose(&candidates.reading, &mut gone, |gone| {
                asking.assign(waiters, candidates, &mut rooms, &served, gone, round)
            });
            let Assigned { pairs, passed_over } = assigned;
            claims.shortfall |= passed_over;
            if pairs.is_empty() {
                if candidates.is_blind() {
                    continue;
                }
                break;
            }
            let take = Box::pin(self.take_pairs(tx, &taking, &pairs, &lives));
            let taken = if round == 0 && self.crowd().is_calm() {
                *unheard = true;
                tx.commit_behind(take).await?
            } else {
                take.await?
            };
            for row in &taken {
                if let Some(mut task) = rows::shown_task(row)? {
                    task.lease_expires_at =
                        lives.expires.get(&SessionId(get::<Uuid>(row, "session_id"))).copied();
                    claims.tasks.insert(task.task_id, task);
                }
                journal.note(|| {
                    let agent = Actor::Agent(get(row, "agent_id"));
                    claimed_line(row, agent.to_string())
                });
            }
            let leases: HashMap<TaskId, Lease> = taken
                .iter()
                .map(|row| (TaskId(get::<Uuid>(row, "task_id")), Lease(get(row, "lease"))))
                .collect();
            // In the order in which they were chosen: that is the queue's.
            for pair in &pairs {
                let (task_id, place) = (pair.task_id, pair.place);
                let Some(&lease) = leases.get(&task_id) else { continue };
                served.insert(place);
                claims.claimed.push((place, task_id, lease));
                if let Some(held) = held.get_mut(&waiters[place].session) {
                    held.push(Claimed { task_id, lease, claim_id: Some(waiters[place].claim_id) });
                }
            }
            let complete = taken.len() == pairs.len();
            self.crowd().learn(!complete);
            claims.shortfall |= !complete || pairs.len() == TASKS;
            if tx.is_over() || complete && !candidates.is_blind() {
                break;
            }
            // What was lost left room.
            for (session, room) in &mut rooms {
                let known = asking.waiters.iter().zip(waiters).find(|(_, w)| w.session == *session);
                if let (Some((Some((_, registered)), _)), Some(held)) = (known, held.get(session)) {
                    *room = registered.max_concurrency.saturating_sub(held.len());
                }
            }
        }
        claims.shortfall |= candidates.is_blind();
        Ok(held)
    }

    async fn take_pairs<C: GenericClient>(
        &self,
        tx: &C,
        taking: &Taking<'_>,
        pairs: &[Pair],
        Lives { switched, ages, .. }: &Lives,
    ) -> Result<Vec<Row>, StoreError> {
        let tasks: Vec<Uuid> = pairs.iter().map(|pair| pair.task_id.0).collect();
        let waiters = || pairs.iter().map(|pair| &taking.waiters[pair.place]);
        let holders: Vec<Uuid> = waiters().map(|w| w.session.0).collect();
        let requests: Vec<Uuid> = waiters().map(|w| w.claim_id).collect();
        let agents: Vec<&str> = pairs
            .iter()
            .map(|pair| taking.asking.waiters[pair.place].as_ref().map_or("", |(_, r)| &r.agent_id))
            .collect();
        let claimer = self.ledger().claimer;
        let take: Params<'_> = &[&tasks, &holders, &agents, &requests];
        let (taken, _) = tokio::try_join!(
            biased;
            CLAIM_PULL_3_TAKE.rows(tx, take),
            async {
                if switched.is_empty() {
                    return Ok(0);
                }
                CLAIM_PULL_4_SWITCH.run(tx, &[&claimer, switched, ages]).await
            },
        )?;
        Ok(taken)
    }

    /// Of the locked sessions: whose sign of life is to be written, and until when each lives.
    fn lives(&self, Taking { waiters, locked, .. }: &Taking<'_>) -> Lives {
        let mut lives = Lives::default();
        for row in *locked {
            let session: Uuid = get(row, "session_id");
            let mut expires_at: Timestamp = get(row, "expires_at");
            let is_ours = get::<Option<Uuid>>(row, "claimer") == Some(self.ledger().claimer);
            let of = waiters.iter().filter(|w| w.session.0 == session);
            if (!is_ours || get(row, "is_quiet"))
                && let Some(age) = of.map(|w| w.asked.elapsed()).min()
            {
                lives.switched.push(session);
                lives.ages.push(age.as_secs_f64());
                let renewed = get::<Timestamp>(row, "renewed_until").checked_sub(age);
                expires_at = expires_at.max(renewed.unwrap_or(expires_at));
            }
            lives.expires.insert(SessionId(session), expires_at);
        }
        lives
    }

    /// What the locked sessions hold, without the leases that are `over` by now: as remembered where this process was the
    /// last to claim for them and they have room, else counted.
    async fn count<C: GenericClient>(
        &self,
        tx: &C,
        Taking { waiters, asking, .. }: &Taking<'_>,
        claimers: &HashMap<SessionId, Option<Uuid>>,
        over: &HashSet<(TaskId, Lease)>,
    ) -> Result<HashMap<SessionId, Vec<Claimed>>, StoreError> {
        let mut held: HashMap<SessionId, Vec<Claimed>> = HashMap::new();
        let mut unsure: Vec<Uuid> = Vec::new();
        for (waiter, asking) in waiters.iter().zip(&asking.waiters) {
            let Some(claimer) = claimers.get(&waiter.session) else { continue };
            let mut known = self.ledger().held(waiter.session);
            if let Some(known) = &mut known {
                known.retain(|c| !over.contains(&(c.task_id, c.lease)));
            }
            match (known, asking) {
                (Some(known), Some((_, registered)))
                    if *claimer == Some(self.ledger().claimer)
                        && known.len() < registered.max_concurrency
                        // What it got under this very request may have ended elsewhere.
                        && known.iter().all(|c| c.claim_id != Some(waiter.claim_id)) =>
                {
                    held.insert(waiter.session, known);
                }
                _ => unsure.push(waiter.session.0),
            }
        }
        if !unsure.is_empty() {
            let rows = CLAIM_PULL_2_HELD.rows(tx, &[&unsure]).await?;
            for session in unsure {
                held.insert(SessionId(session), Vec::new());
            }
            for row in rows {
                held.entry(SessionId(get::<Uuid>(&row, "holder"))).or_default().push(Claimed {
                    task_id: TaskId(get::<Uuid>(&row, "task_id")),
                    lease: Lease(get(&row, "lease")),
                    claim_id: get(&row, "claim_id"),
                });
            }
        }
        Ok(held)
    }

    /// A session that could not be locked has ended, or may not claim, or is being changed right now.
    async fn explain_unlocked<C: GenericClient>(
        &self,
        client: &C,
        waiters: &[Waiter],
        locked: &HashMap<SessionId, Option<Uuid>>,
        claims: &mut PullClaims,
    ) -> Result<(), StoreError> {
        let sessions: Vec<Uuid> = waiters
            .iter()
            .map(|w| w.session)
            .filter(|s| !locked.contains_key(s))
            .map(|s| s.0)
            .collect();
        let rows = CHECK_SESSIONS.rows(client, &[&sessions]).await?;
        for (place, waiter) in waiters.iter().enumerate() {
            if locked.contains_key(&waiter.session) {
                continue;
            }
            match rows.iter().find(|r| get::<Uuid>(r, "session_id") == waiter.session.0) {
                Some(row) if !get::<bool>(row, "ended") => {
                    if get::<bool>(row, "barred") {
                        claims.barred.push(place);
                    } else {
                        claims.shortfall = true;
                    }
                }
                Some(_) | None => {
                    self.ledger().forget(waiter.session);
                    claims.ended.push(place);
                }
            }
        }
        Ok(())
    }
}

/// What a claim goes by, once its first statements are answered.
#[derive(Clone, Copy)]
struct Taking<'a> {
    waiters: &'a [Waiter],
    asking: &'a Asking,
    ends: &'a [EndLease],
    locked: &'a [Row],
}

/// The signs of life of locked sessions.
#[derive(Default)]
struct Lives {
    /// Whose is to be written: of those that another process has claimed for, or that have been quiet.
    switched: Vec<Uuid>,
    /// How many seconds ago each of these asked.
    ages: Vec<f64>,
    /// When the leases of each session expire.
    expires: HashMap<SessionId, Timestamp>,
}

fn show(tasks: &mut HashMap<TaskId, Task>, rows: &[Row]) -> Result<(), StoreError> {
    for row in rows {
        let task = rows::task(row, 0)?;
        tasks.insert(task.task_id, task);
    }
    Ok(())
}

/// The tasks of these claims that are held still, and cannot be undone any more.
async fn keep<C: GenericClient>(
    tx: &C,
    claims: &[(usize, HeldLease)],
) -> Result<HashSet<TaskId>, StoreError> {
    // Two calls may repeat one request.
    let each: HashMap<TaskId, &HeldLease> =
        claims.iter().map(|(_, held)| (held.task_id, held)).collect();
    let tasks: Vec<Uuid> = each.values().map(|held| held.task_id.0).collect();
    let leases: Vec<i64> = each.values().map(|held| held.lease.0).collect();
    let holders: Vec<Uuid> = each.values().map(|held| held.holder.0).collect();
    let rows = KEEP_CLAIMS.rows(tx, &[&tasks, &leases, &holders]).await?;
    Ok(rows.iter().map(|row| TaskId(get::<Uuid>(row, "task_id"))).collect())
}
