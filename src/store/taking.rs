//! The second half of a claim by dequeue: what the locked sessions hold, whom a candidate goes to, and the take.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    EndLease, Ended, Store, StoreError,
    asking::{Asking, Assigned, Candidates, Pair, TASKS},
    claims::{ROUNDS, claimed_line},
    connection::{GenericClient, Transaction},
    crowd::Chosen,
    journal::Journal,
    leases::HeldLease,
    ledger::Claimed,
    rows::{self, get, moment},
    statement::{
        CHECK_SESSIONS, CLAIM_PULL_2_HELD, CLAIM_PULL_3_TAKE, CLAIM_PULL_4_SWITCH, GET_TASKS,
        KEEP_CLAIMS, Params,
    },
    work::{PullClaims, Waiter, Worked, show},
};
use crate::model::{Actor, Lease, SessionId, Source, TaskId};

impl Store {
    /// Claims for the sessions that are locked. Returns what each of them holds then. Where others are hardly in the way, the
    /// commit goes along with the first take, and what was lost all the same is a shortfall.
    pub(super) async fn take(
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
            candidates.pass_over();
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
            // Its rows are read while a commit that goes along is on its way to disk.
            let take = Box::pin(async {
                let taken = self.take_pairs(tx, &taking, &pairs, &lives).await?;
                show_taken(&taken, &lives, claims, journal)?;
                Ok(taken)
            });
            let taken = if round == 0 && self.crowd().is_calm() {
                *unheard = true;
                tx.commit_behind(take).await?
            } else {
                take.await?
            };
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
                    let of_issue =
                        claims.tasks.get(&task_id).is_some_and(|t| t.source == Source::Forgejo);
                    let claim_id = Some(waiters[place].claim_id);
                    held.push(Claimed { task_id, lease, claim_id, of_issue });
                }
            }
            let complete = taken.len() == pairs.len();
            self.crowd().learn(&candidates.reading, !complete);
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
        Lives { claimers, switched, ages, .. }: &Lives,
    ) -> Result<Vec<Row>, StoreError> {
        let tasks: Vec<Uuid> = pairs.iter().map(|pair| pair.task_id.0).collect();
        let waiters = || pairs.iter().map(|pair| &taking.waiters[pair.place]);
        let holders: Vec<Uuid> = waiters().map(|w| w.session.0).collect();
        let requests: Vec<Uuid> = waiters().map(|w| w.claim_id).collect();
        let agents: Vec<&str> = pairs
            .iter()
            .map(|pair| taking.asking.waiters[pair.place].as_ref().map_or("", |(_, r)| &r.agent_id))
            .collect();
        let lanes: Vec<Option<i64>> = pairs.iter().map(|pair| pair.lane_id).collect();
        let take: Params<'_> = &[&tasks, &holders, &agents, &requests, &lanes];
        let (taken, _) = tokio::try_join!(
            biased;
            CLAIM_PULL_3_TAKE.rows(tx, take),
            async {
                if switched.is_empty() {
                    return Ok(0);
                }
                CLAIM_PULL_4_SWITCH.run(tx, &[claimers, switched, ages]).await
            },
        )?;
        Ok(taken)
    }

    /// Of the locked sessions: whose sign of life is to be written, and by whom they are claimed for, and until when each
    /// lives.
    fn lives(&self, Taking { waiters, locked, .. }: &Taking<'_>) -> Lives {
        let mut lives = Lives::default();
        for row in *locked {
            let session: Uuid = get(row, "session_id");
            let mut expires_at = moment(row, "expires_at");
            // A claim in one statement may be on its way that goes by what was held before this one, and by who claimed.
            let is_crowded = self.ledger().is_crowded(SessionId(session));
            let claimer = if is_crowded { Uuid::now_v7() } else { self.ledger().claimer };
            let stays = get::<Option<Uuid>>(row, "claimer") == Some(claimer);
            let of = waiters.iter().filter(|w| w.session.0 == session);
            if (!stays || get(row, "is_quiet"))
                && let Some(age) = of.map(|w| w.asked.elapsed()).min()
            {
                lives.claimers.push(claimer);
                lives.switched.push(session);
                lives.ages.push(age.as_secs_f64());
                let renewed = moment(row, "renewed_until").checked_sub(age);
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
                        && waiter.has_room(&known, registered) =>
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
                    of_issue: get(&row, "of_issue"),
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
pub(super) struct Taking<'a> {
    pub(super) waiters: &'a [Waiter],
    pub(super) asking: &'a Asking,
    pub(super) ends: &'a [EndLease],
    pub(super) locked: &'a [Row],
}

/// The signs of life of locked sessions.
#[derive(Default)]
struct Lives {
    /// Whose is to be written: of those that another process has claimed for, or may be about to, or that have been quiet.
    switched: Vec<Uuid>,
    /// Who claims for each of these.
    claimers: Vec<Uuid>,
    /// How many seconds ago each of these asked.
    ages: Vec<f64>,
    /// When the leases of each session expire.
    expires: HashMap<SessionId, Timestamp>,
}

/// The tasks that were taken, and a log line each.
fn show_taken(
    taken: &[Row],
    lives: &Lives,
    claims: &mut PullClaims,
    journal: &mut Journal,
) -> Result<(), StoreError> {
    claims.tasks.reserve(taken.len());
    for row in taken {
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
