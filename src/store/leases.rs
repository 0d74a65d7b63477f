//! What a holder writes, and how leases end. Every write is fenced by task, lease and session.

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{begin, commit},
    ending::Ending,
    error::retry,
    journal::{Journal, Line},
    rows::{get, word},
    statement::{
        CHECK_LEASE, FIND_OVERDUE_LEASE, GET_TASKS, LIST_EXPIRED_LEASES, LIST_LOST_LEASES,
        LIST_SESSION_LEASES, Params, START_TASK,
    },
};
use crate::model::{
    Actor, EventType, ExecutionMode, Lease, Receipt, SessionId, Status, Task, TaskId,
};

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
    pub(super) const fn as_str(self) -> &'static str {
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
    /// This very receipt had ended it before, or this very call did, unheard.
    Before,
    /// Nothing was done.
    Not(Refusal),
}

/// A holder says that it works.
#[derive(Debug, Clone)]
pub struct Start {
    /// Under which lease.
    pub held: HeldLease,
    /// Who says so.
    pub actor: Actor,
    /// Detail of the event.
    pub detail: serde_json::Value,
    /// A new time limit from now, in seconds.
    pub timeout_secs: Option<i32>,
}

/// What came of it.
#[derive(Debug)]
pub struct Started {
    /// How the task stands now, or why nothing was done.
    pub status: Result<Status, Refusal>,
    /// The task, if it was to be shown.
    pub task: Option<Task>,
}

/// Why a holder's write did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such task.
    Missing,
    /// The lease is another's, or nobody's.
    LeaseLost,
    /// The task is for hosts, and no later lease than the one named has been given out: it never was an agent's.
    OnHost,
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
    /// That run has ended, whatever its host says.
    pub run_ended: bool,
    /// How many bytes of that run's output are stored.
    pub next_offset: Option<i64>,
    /// How long ago its deadline was, in seconds; before it, below zero.
    pub overdue_secs: Option<i64>,
}

impl LeaseState {
    /// True when this lease is still held.
    pub fn is_held_by(&self, held: &HeldLease) -> bool {
        self.lease == held.lease && self.holder == Some(held.holder)
    }
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
        let mut unheard = false;
        retry!(self.end_once(ends, backoff, &mut unheard).await)
    }

    /// `unheard` is true once the commit of an earlier try was not heard of.
    async fn end_once(
        &self,
        ends: &[EndLease],
        backoff: std::time::Duration,
        unheard: &mut bool,
    ) -> Result<Vec<Ended>, StoreError> {
        let ending = Ending::new(ends, backoff);
        let mut client = self.client().await?;
        let mut journal = Journal::default();
        let tx = begin(&mut client).await?;
        let rows = ending.rows(&tx).await?;
        let ended = ending.outcomes(&tx, &rows, *unheard, &mut journal).await?;
        *unheard = true;
        commit(tx).await?;
        journal.write();
        self.remember_ends(ends, &ended);
        Ok(ended)
    }

    /// So many slots are free again.
    pub(super) fn remember_ends(&self, ends: &[EndLease], ended: &[Ended]) {
        for (end, ended) in ends.iter().zip(ended) {
            if let Ended::Now(status) = ended {
                crate::metrics::lease_ended(end.outcome.as_str(), status.as_str());
                self.ledger().ended(end.held.holder, end.held.task_id, end.held.lease);
            }
        }
    }

    /// The holder works: `assigned` becomes `running`. `timeout_secs` sets a new deadline from now when it begins. `Ok` with the state
    /// when nothing was done because the lease is not held.
    pub async fn start_task(
        &self,
        held: &HeldLease,
        actor: &Actor,
        detail: serde_json::Value,
        timeout_secs: Option<i32>,
    ) -> Result<Result<Status, Refusal>, StoreError> {
        let start = Start { held: *held, actor: actor.clone(), detail, timeout_secs };
        let started = self.start_tasks(&[start], false).await?.pop();
        Ok(started.map_or(Err(Refusal::Missing), |started| started.status))
    }

    /// The same for many, each task once, in one statement; answers in order, with the tasks if they are to be shown.
    pub async fn start_tasks(
        &self,
        starts: &[Start],
        show: bool,
    ) -> Result<Vec<Started>, StoreError> {
        retry!(self.start_once(starts, show).await)
    }

    async fn start_once(&self, starts: &[Start], show: bool) -> Result<Vec<Started>, StoreError> {
        let tasks: Vec<Uuid> = starts.iter().map(|s| s.held.task_id.0).collect();
        let ids: Vec<TaskId> = starts.iter().map(|s| s.held.task_id).collect();
        let leases: Vec<i64> = starts.iter().map(|s| s.held.lease.0).collect();
        let holders: Vec<Uuid> = starts.iter().map(|s| s.held.holder.0).collect();
        let actors: Vec<String> = starts.iter().map(|s| s.actor.to_string()).collect();
        let details: Vec<&serde_json::Value> = starts.iter().map(|s| &s.detail).collect();
        let limits: Vec<Option<i32>> = starts.iter().map(|s| s.timeout_secs).collect();
        let client = self.client().await?;
        START_TASK.prepare(&client).await?;
        GET_TASKS.prepare(&client).await?;
        let starting: Params<'_> = &[&tasks, &leases, &holders, &actors, &details, &limits];
        let (rows, shown) = tokio::try_join!(
            biased;
            START_TASK.rows(&client, starting),
            async {
                if show { super::tasks::show(&client, &ids).await } else { Ok(Vec::new()) }
            },
        )?;
        let mut started: Vec<Started> =
            starts.iter().map(|_| Started { status: Err(Refusal::Missing), task: None }).collect();
        let mut journal = Journal::default();
        for row in &rows {
            let place = usize::try_from(get::<i64>(row, "ord") - 1).unwrap_or(usize::MAX);
            let Some(slot) = started.get_mut(place) else { continue };
            if let Some(event) = get::<Option<String>>(row, "type") {
                // Where only progress is told, the status stays.
                let started = event == EventType::Started.as_str();
                let status: String = get(row, "status");
                journal.note(|| Line {
                    task_id: ids[place].0,
                    event,
                    from: Some(if started { Status::Assigned.to_string() } else { status.clone() }),
                    status: started.then_some(status),
                    lease: starts[place].held.lease,
                    attempt: Some(get(row, "attempt")),
                    actor: starts[place].actor.to_string(),
                    ..Line::default()
                });
            }
            slot.status = if get(row, "applied") {
                Ok(word(row, "status")?)
            } else if get(row, "on_host") {
                Err(Refusal::OnHost)
            } else {
                Err(Refusal::LeaseLost)
            };
        }
        journal.write();
        for task in shown {
            if let Some(place) = ids.iter().position(|id| *id == task.task_id) {
                started[place].task = Some(task);
            }
        }
        Ok(started)
    }

    /// How a task stands; `None` when there is none.
    pub async fn check_lease(&self, task: TaskId) -> Result<Option<LeaseState>, StoreError> {
        let Some(row) = self.read_row(&CHECK_LEASE, &[&task.0]).await? else { return Ok(None) };
        Ok(Some(LeaseState {
            status: word(&row, "status")?,
            lease: Lease(get(&row, "lease")),
            holder: get::<Option<Uuid>>(&row, "holder").map(SessionId),
            execution_mode: word(&row, "execution_mode")?,
            run_lease: get::<Option<i64>>(&row, "run_lease").map(Lease),
            run_ended: get::<Option<bool>>(&row, "run_ended").unwrap_or(false),
            next_offset: get(&row, "next_offset"),
            overdue_secs: get(&row, "overdue_secs"),
        }))
    }

    /// What an agent's session holds.
    pub async fn list_session_leases(
        &self,
        session: SessionId,
    ) -> Result<Vec<HeldLease>, StoreError> {
        Ok(self.read(&LIST_SESSION_LEASES, &[&session.0]).await?.iter().map(held_lease).collect())
    }

    /// Leases of agents whose session has ended, with the reason of its end. Without those whose task somebody has locked.
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

    /// Leases past their deadline; for runs on hosts past it by more than `grace`. Without those whose task somebody has
    /// locked.
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

    /// One that the two above should have named ten seconds ago.
    pub async fn find_overdue_lease(
        &self,
        grace: std::time::Duration,
    ) -> Result<Option<TaskId>, StoreError> {
        let client = self.client().await?;
        let row = FIND_OVERDUE_LEASE.row(&client, &[&grace.as_secs_f64()]).await?;
        Ok(row.map(|row| TaskId(get::<Uuid>(&row, "task_id"))))
    }
}

fn held_lease(row: &Row) -> HeldLease {
    HeldLease {
        task_id: TaskId(get::<Uuid>(row, "task_id")),
        lease: Lease(get(row, "lease")),
        holder: SessionId(get::<Uuid>(row, "holder")),
    }
}
