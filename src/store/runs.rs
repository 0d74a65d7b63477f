//! Runs on hosts: recorded before they start, followed by offset, taken over when their replica is gone.

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    HeldLease, Store, StoreError,
    journal::{Journal, Line},
    rows::{get, word},
    statement::{
        APPEND_RUN_OUTPUT, INSERT_RUN, LIST_EARLIER_RUNS, LIST_ENDED_RUNS, LIST_OWN_RUNS,
        MARK_RUN_STARTED, TAKE_OVER_RUNS,
    },
    traced::Traced,
};
use crate::{
    config::OutputFormat,
    model::{Actor, EventType, HostAgentId, Lease, SessionId, TaskId},
};

/// A run that is about to start. It keeps this even if the configuration changes meanwhile.
#[derive(Debug, Clone)]
pub struct NewRun<'a> {
    /// The argument vector.
    pub command: &'a [String],
    /// `stdin` or `file`.
    pub prompt_via: &'a str,
    /// How the output is read.
    pub output: &'a str,
    /// On the host.
    pub work_dir: &'a str,
    /// Seconds.
    pub timeout_secs: i32,
}

/// A run whose replica is gone, under its new lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenOver {
    /// The new lease.
    pub held: HeldLease,
    /// The slot that it takes.
    pub host_agent: HostAgentId,
    /// What is known of the run; `None` when nothing was done on the host yet.
    pub run: Option<KnownRun>,
}

/// A run as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRun {
    /// The lease under which it started.
    pub run_lease: Lease,
    /// How its output is read.
    pub output: OutputFormat,
    /// On the host.
    pub work_dir: String,
    /// Seconds.
    pub timeout_secs: i32,
    /// How many bytes of its output are stored.
    pub next_offset: i64,
    /// It is known to have started.
    pub started: bool,
}

/// Taken over at once, at most.
const BATCH: i64 = 50;

impl Store {
    /// Records a run before anything is done on its host. False when the lease is not held.
    pub async fn insert_run(&self, held: &HeldLease, run: &NewRun<'_>) -> Result<bool, StoreError> {
        let client = self.client().await?;
        let row = INSERT_RUN
            .row(
                &client,
                &[
                    &held.task_id.0,
                    &held.lease.0,
                    &held.holder.0,
                    &run.command,
                    &run.prompt_via,
                    &run.output,
                    &run.work_dir,
                    &run.timeout_secs,
                ],
            )
            .await?;
        Ok(row.is_some())
    }

    /// Records that a run is known to have started.
    pub async fn mark_run_started(&self, task: TaskId, run_lease: Lease) -> Result<(), StoreError> {
        let client = self.client().await?;
        MARK_RUN_STARTED.run(&client, &[&task.0, &run_lease.0]).await?;
        Ok(())
    }

    /// Stores a chunk of a run's output, if it continues what is there and the lease is held. False when it does not.
    pub async fn append_run_output(
        &self,
        held: &HeldLease,
        run_lease: Lease,
        offset: i64,
        data: &[u8],
    ) -> Result<bool, StoreError> {
        let client = self.client().await?;
        let params: super::statement::Params<'_> =
            &[&held.task_id.0, &run_lease.0, &held.lease.0, &held.holder.0, &offset, &data];
        Ok(APPEND_RUN_OUTPUT.run(&client, params).await? == 1)
    }

    /// The runs that a task had before on the host of this one, newest first: each with the folder in which it worked.
    pub async fn list_earlier_runs(
        &self,
        task: TaskId,
        run_lease: Lease,
    ) -> Result<Vec<(Lease, String)>, StoreError> {
        let rows = self.read(&LIST_EARLIER_RUNS, &[&task.0, &run_lease.0]).await?;
        Ok(rows.iter().map(|row| (Lease(get(row, "run_lease")), get(row, "work_dir"))).collect())
    }

    /// Which of these runs, each a task and its run's lease, nobody has any more.
    pub async fn list_ended_runs(
        &self,
        found: &[(TaskId, Lease)],
    ) -> Result<Vec<(TaskId, Lease)>, StoreError> {
        let client = self.client().await?;
        let tasks: Vec<Uuid> = found.iter().map(|(task, _)| task.0).collect();
        let leases: Vec<i64> = found.iter().map(|(_, lease)| lease.0).collect();
        Ok(LIST_ENDED_RUNS
            .rows(&client, &[&tasks, &leases])
            .await?
            .iter()
            .map(|row| (TaskId(get(row, "task_id")), Lease(get(row, "run_lease"))))
            .collect())
    }

    /// Takes over runs on these host agents whose replica's session has ended.
    pub async fn take_over_runs(
        &self,
        reachable: &[HostAgentId],
        session: SessionId,
        actor: &Actor,
    ) -> Result<Vec<TakenOver>, StoreError> {
        if reachable.is_empty() {
            return Ok(Vec::new());
        }
        let client = self.client().await?;
        let ids: Vec<i64> = reachable.iter().map(|id| id.0).collect();
        let actor = actor.to_string();
        let params: super::statement::Params<'_> = &[&ids, &session.0, &actor, &BATCH];
        let mut journal = Journal::default();
        let rows = TAKE_OVER_RUNS.rows(&client, params).await?;
        for row in &rows {
            journal.note(|| Line {
                task_id: get(row, "task_id"),
                event: EventType::TakenOver.to_string(),
                lease: Lease(get(row, "lease")),
                attempt: Some(get(row, "attempt")),
                actor: actor.clone(),
                traced: Traced::claim(row),
                ..Line::default()
            });
        }
        journal.write();
        rows.iter().map(|row| taken_over(row, session)).collect()
    }

    /// What a replica holds by its session, whether or not it executes it.
    pub async fn list_own_runs(&self, session: SessionId) -> Result<Vec<TakenOver>, StoreError> {
        let client = self.client().await?;
        let rows = LIST_OWN_RUNS.rows(&client, &[&session.0]).await?;
        rows.iter().map(|row| taken_over(row, session)).collect()
    }
}

fn taken_over(row: &Row, session: SessionId) -> Result<TakenOver, StoreError> {
    let run = match get::<Option<i64>>(row, "run_lease") {
        None => None,
        Some(run_lease) => Some(KnownRun {
            run_lease: Lease(run_lease),
            output: word(row, "output")?,
            work_dir: get(row, "work_dir"),
            timeout_secs: get(row, "timeout_secs"),
            next_offset: get(row, "next_offset"),
            started: get(row, "started"),
        }),
    };
    Ok(TakenOver {
        held: HeldLease {
            task_id: TaskId(get::<Uuid>(row, "task_id")),
            lease: Lease(get(row, "lease")),
            holder: session,
        },
        host_agent: HostAgentId(get(row, "host_agent_id")),
        run,
    })
}
