//! What a holder writes, and how leases end. Every write is fenced by task, lease and session.

use deadpool_postgres::GenericClient;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{begin, commit},
    error::retry,
    issues,
    rows::{get, word},
    statement::{
        CHECK_LEASE, END_LEASES, FIND_RECEIPT, LIST_EXPIRED_LEASES, LIST_LOST_LEASES,
        LIST_PENDING_ISSUES, LIST_SESSION_LEASES, START_TASK,
    },
};
use crate::model::{Actor, ExecutionMode, Lease, Receipt, SessionId, Status, TaskId};

/// What fences a holder's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeldLease {
    /// The task.
    pub task_id: TaskId,
    /// The lease that the holder believes to have.
    pub lease: Lease,
    /// The holder's session.
    pub holder: SessionId,
}

/// How a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The work is done; a pull request in the receipt makes it `review_pending`.
    Completed,
    /// It is not; counts as an attempt.
    Failed,
    /// Its time was up; counts as an attempt.
    TimedOut,
    /// The holder is gone; counts as an attempt.
    Lost,
    /// Given back: the attempt is refunded, five times at most.
    Released,
    /// The claim never reached its caller: as if it had not been.
    Undone,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
            Self::Released => "released",
            Self::Undone => "undone",
        }
    }
}

/// The end of one lease.
#[derive(Debug, Clone)]
pub struct EndLease {
    /// Which lease.
    pub held: HeldLease,
    /// How it ends.
    pub outcome: Outcome,
    /// Why, for a person; bounded by the caller.
    pub reason: Option<String>,
    /// Wait at least this many seconds before the next attempt.
    pub wait_secs: Option<i32>,
    /// The receipt that ends it.
    pub receipt: Option<Receipt>,
    /// Who ends it; with a receipt, the agent or `host/agent` that sends it.
    pub actor: Actor,
}

/// What came of the end of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It has ended; the task now has this status.
    Now(Status),
    /// This very receipt had ended it before.
    Before,
    /// Nothing was done.
    Not(Refusal),
}

/// Why a holder's write did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such task.
    Missing,
    /// The lease is another's, or nobody's.
    LeaseLost,
}

/// How a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    /// Its status.
    pub status: Status,
    /// Its newest lease.
    pub lease: Lease,
    /// Who has it.
    pub holder: Option<SessionId>,
    /// Its mode.
    pub execution_mode: ExecutionMode,
    /// The newest run on a host.
    pub run_lease: Option<Lease>,
    /// How many bytes of that run's output are stored.
    pub next_offset: Option<i64>,
}

impl LeaseState {
    /// True when this lease is still held.
    pub fn is_held_by(&self, held: &HeldLease) -> bool {
        self.lease == held.lease && self.holder == Some(held.holder)
    }
}

/// The canonical bytes of a receipt, to recognise it when it is sent again.
fn receipt_hash(receipt: &serde_json::Value) -> Vec<u8> {
    Sha256::digest(receipt.to_string()).to_vec()
}

impl Store {
    /// Ends leases, all in one transaction; answers each in the order given. A task may be named once. When the task is
    /// free again, a newer state of its issue that waited is applied in the same transaction.
    pub async fn end_leases(
        &self,
        ends: &[EndLease],
        backoff: std::time::Duration,
    ) -> Result<Vec<Ended>, StoreError> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        retry!(self.end_once(ends, backoff).await)
    }

    async fn end_once(
        &self,
        ends: &[EndLease],
        backoff: std::time::Duration,
    ) -> Result<Vec<Ended>, StoreError> {
        let tasks: Vec<Uuid> = ends.iter().map(|e| e.held.task_id.0).collect();
        let leases: Vec<i64> = ends.iter().map(|e| e.held.lease.0).collect();
        let holders: Vec<Uuid> = ends.iter().map(|e| e.held.holder.0).collect();
        let outcomes: Vec<&str> = ends.iter().map(|e| e.outcome.as_str()).collect();
        let reasons: Vec<Option<&str>> = ends.iter().map(|e| e.reason.as_deref()).collect();
        let waits: Vec<Option<i32>> = ends.iter().map(|e| e.wait_secs).collect();
        let receipts: Vec<Option<serde_json::Value>> = ends
            .iter()
            .map(|e| e.receipt.as_ref().map(|r| serde_json::to_value(r).unwrap_or_default()))
            .collect();
        let hashes: Vec<Option<Vec<u8>>> =
            receipts.iter().map(|r| r.as_ref().map(receipt_hash)).collect();
        let actors: Vec<String> = ends.iter().map(|e| e.actor.to_string()).collect();

        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let rows = END_LEASES
            .rows(
                &tx,
                &[
                    &tasks,
                    &leases,
                    &holders,
                    &outcomes,
                    &reasons,
                    &waits,
                    &receipts,
                    &hashes,
                    &actors,
                    &backoff.as_secs_f64(),
                ],
            )
            .await?;
        let from_forge: Vec<Uuid> = rows
            .iter()
            .filter(|r| get::<Option<&str>>(r, "source") == Some("forgejo"))
            .map(|r| get(r, "task_id"))
            .collect();
        if !from_forge.is_empty() {
            for row in LIST_PENDING_ISSUES.rows(&tx, &[&from_forge]).await? {
                issues::apply(&tx, get(&row, "key")).await?;
            }
        }

        let mut ended = Vec::with_capacity(ends.len());
        for (end, hash) in ends.iter().zip(&hashes) {
            let row = rows.iter().find(|r| get::<Uuid>(r, "task_id") == end.held.task_id.0);
            ended.push(match row {
                Some(row) if get::<bool>(row, "applied") => Ended::Now(word(row, "to_status")?),
                Some(row) if get::<Option<&str>>(row, "old_status").is_some() => {
                    refused(&tx, end, hash.as_deref()).await?
                }
                _ => Ended::Not(Refusal::Missing),
            });
        }
        commit(tx).await?;
        for (end, ended) in ends.iter().zip(&ended) {
            if let Ended::Now(status) = ended {
                crate::metrics::lease_ended(end.outcome.as_str(), status.as_str());
            }
        }
        Ok(ended)
    }

    /// The holder works: `assigned` becomes `running`. `timeout_secs` sets a new deadline from now. `Ok` with the state
    /// when nothing was done because the lease is not held.
    pub async fn start_task(
        &self,
        held: &HeldLease,
        actor: &Actor,
        detail: serde_json::Value,
        timeout_secs: Option<i32>,
    ) -> Result<Result<Status, Refusal>, StoreError> {
        retry!(
            async {
                let client = self.client().await?;
                let row = START_TASK
                    .row(
                        &client,
                        &[
                            &held.task_id.0,
                            &held.lease.0,
                            &held.holder.0,
                            &actor.to_string(),
                            &detail,
                            &timeout_secs,
                        ],
                    )
                    .await?;
                match row {
                    None => Ok(Err(Refusal::Missing)),
                    Some(row) if get(&row, "applied") => Ok(Ok(word(&row, "status")?)),
                    Some(_) => Ok(Err(Refusal::LeaseLost)),
                }
            }
            .await
        )
    }

    /// How a task stands; `None` when there is none.
    pub async fn check_lease(&self, task: TaskId) -> Result<Option<LeaseState>, StoreError> {
        let client = self.client().await?;
        let Some(row) = CHECK_LEASE.row(&client, &[&task.0]).await? else { return Ok(None) };
        Ok(Some(LeaseState {
            status: word(&row, "status")?,
            lease: Lease(get(&row, "lease")),
            holder: get::<Option<Uuid>>(&row, "holder").map(SessionId),
            execution_mode: word(&row, "execution_mode")?,
            run_lease: get::<Option<i64>>(&row, "run_lease").map(Lease),
            next_offset: get(&row, "next_offset"),
        }))
    }

    /// What an agent's session holds.
    pub async fn list_session_leases(
        &self,
        session: SessionId,
    ) -> Result<Vec<HeldLease>, StoreError> {
        let client = self.client().await?;
        Ok(LIST_SESSION_LEASES.rows(&client, &[&session.0]).await?.iter().map(held_lease).collect())
    }

    /// Leases of agents whose session has ended, with the reason of its end.
    pub async fn list_lost_leases(
        &self,
        limit: i64,
    ) -> Result<Vec<(HeldLease, Option<String>)>, StoreError> {
        let client = self.client().await?;
        Ok(LIST_LOST_LEASES
            .rows(&client, &[&limit])
            .await?
            .iter()
            .map(|row| (held_lease(row), get(row, "end_reason")))
            .collect())
    }

    /// Leases past their deadline; for runs on hosts past it by more than `grace`.
    pub async fn list_expired_leases(
        &self,
        grace: std::time::Duration,
        limit: i64,
    ) -> Result<Vec<HeldLease>, StoreError> {
        let client = self.client().await?;
        Ok(LIST_EXPIRED_LEASES
            .rows(&client, &[&grace.as_secs_f64(), &limit])
            .await?
            .iter()
            .map(held_lease)
            .collect())
    }
}

fn held_lease(row: &tokio_postgres::Row) -> HeldLease {
    HeldLease {
        task_id: TaskId(get::<Uuid>(row, "task_id")),
        lease: Lease(get(row, "lease")),
        holder: SessionId(get::<Uuid>(row, "holder")),
    }
}

/// A receipt whose lease is gone may be one that was stored before.
async fn refused<C: GenericClient>(
    client: &C,
    end: &EndLease,
    hash: Option<&[u8]>,
) -> Result<Ended, StoreError> {
    let (Some(hash), actor) = (hash, end.actor.to_string()) else {
        return Ok(Ended::Not(Refusal::LeaseLost));
    };
    let sender = actor.split_once(':').map_or("", |(_, name)| name);
    let row =
        FIND_RECEIPT.row(client, &[&end.held.task_id.0, &end.held.lease.0, &hash, &sender]).await?;
    Ok(match row {
        Some(row) if get(&row, "same") => Ended::Before,
        _ => Ended::Not(Refusal::LeaseLost),
    })
}
