//! One attempt on a host, and how it is settled.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{KILL_GRACE, Lease};
use crate::{
    config::OutputFormat,
    coordinator::{Replica, hosts::Slot, until_stored},
    execution::{
        self, Executor, ExitReason, Killed, OutcomeKind, RunDir, RunError, RunState, kill, read,
        stderr_tail, tombstone,
    },
    model::{Actor, HostAgentId, Receipt, ReceiptStatus, clean_text},
    store::{EndLease, Ended, HeldLease, Outcome, StoreError},
    telemetry::error_chain,
};

/// Bytes of stderr that a judgement sees.
const STDERR_TAIL: usize = 8 << 10;
/// Bytes of a reason.
const MAX_REASON: usize = 2_000;
/// A task on a host under one lease.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) replica: Arc<Replica>,
    pub(super) held: HeldLease,
    pub(super) run: RunDir,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) output: OutputFormat,
    pub(super) timeout: Duration,
    /// When this replica began to handle it.
    pub(super) since: Instant,
    pub(super) host_id: String,
    host_agent: HostAgentId,
    /// `host_id/agent_type`
    name: String,
}

impl Attempt {
    pub(super) fn new(
        replica: &Arc<Replica>,
        held: HeldLease,
        run_lease: Lease,
        (host_agent, slot): (HostAgentId, Slot),
        output: OutputFormat,
        timeout_secs: i32,
    ) -> Self {
        Self {
            replica: Arc::clone(replica),
            held,
            run: RunDir {
                work_dir: slot.host.work_dir,
                fleet_id: replica.fleet_id,
                task_id: held.task_id,
                run_lease,
            },
            executor: slot.executor,
            output,
            timeout: Duration::from_secs(u64::try_from(timeout_secs).unwrap_or(1)),
            since: Instant::now(),
            name: format!("{}/{}", slot.host.host_id, slot.agent_type),
            host_id: slot.host.host_id,
            host_agent,
        }
    }

    fn actor(&self) -> Actor {
        Actor::Host(self.name.clone())
    }

    /// The fenced write that must succeed after a start. False when the lease is not held. A start of which nothing was
    /// heard (`begun` is false) counts as one when output shows it; until then a replica that takes over and finds nothing on
    /// the host gives the task back.
    pub(super) async fn mark_running(&self, begun: bool) -> Result<bool, StoreError> {
        let store = &self.replica.store;
        let deadline = Some(i32::try_from(self.timeout.as_secs()).unwrap_or(i32::MAX));
        let running = until_stored!(self.replica, async {
            let none = serde_json::json!({});
            store.start_task(&self.held, &self.actor(), none, deadline).await
        })?;
        if running.is_err() {
            return Ok(false);
        }
        if begun {
            until_stored!(self.replica, async {
                store.mark_run_started(self.held.task_id, self.run.run_lease).await
            })?;
        }
        tracing::info!(task.id = %self.held.task_id, lease = self.held.lease.0, host = self.name, "run is under way");
        Ok(true)
    }

    /// A write matched nothing. Somebody follows the same run under a higher lease: let go, and never signal. Otherwise
    /// (cancelled, timed out, another run) our own run is ended.
    pub(super) async fn lease_is_gone(&self) -> Result<(), StoreError> {
        let state = until_stored!(self.replica, self.replica.store.check_lease(self.held.task_id))?;
        let taken_over = state.is_some_and(|s| {
            s.run_lease == Some(self.run.run_lease)
                // Else the task was called off and went to somebody else, who has no run of it yet, or never will.
                && !s.run_ended
                && s.lease > self.held.lease
                && s.holder.is_some()
        });
        if taken_over {
            tracing::info!(task.id = %self.held.task_id, lease = self.held.lease.0, "another replica follows this run now");
            return Ok(());
        }
        tracing::info!(task.id = %self.held.task_id, lease = self.held.lease.0, host = self.name, "the lease is gone; the run is ended on its host");
        if self.end_on_host().await {
            self.bury().await;
        }
        Ok(())
    }

    /// How the run stands by what its host says now.
    pub(super) async fn state_on_host(&self) -> Result<RunState, RunError> {
        read(self.executor.as_ref(), &self.run, 0, 1).await.map(|chunk| chunk.state)
    }

    /// Ends what is left of earlier runs of this task on its host: who follows one may not have heard yet that it is over,
    /// and it would work on in the same folder. False when it survives KILL.
    pub(super) async fn end_earlier_runs(&self) -> Result<Result<bool, RunError>, StoreError> {
        // The first lease has none before it.
        if self.run.run_lease.0 <= 1 {
            return Ok(Ok(true));
        }
        let (task_id, run_lease) = (self.run.task_id, self.run.run_lease);
        let store = &self.replica.store;
        let earlier = until_stored!(self.replica, store.list_earlier_runs(task_id, run_lease))?;
        for (run_lease, work_dir) in earlier {
            let run = RunDir { work_dir, run_lease, ..self.run.clone() };
            match kill(self.executor.as_ref(), &run, KILL_GRACE).await {
                Ok(Killed::Gone | Killed::NeverStarted) => {}
                Ok(Killed::StillAlive) => {
                    tracing::error!(task.id = %task_id, run.lease = run_lease.0, host = self.name, "the processes of an earlier run survive KILL");
                    return Ok(Ok(false));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(true))
    }

    /// Ends the run on its host, if need be for a while: the host may be away. True when nothing is left of it.
    pub(super) async fn end_on_host(&self) -> bool {
        let mut pause = Duration::from_secs(1);
        for _ in 0..8 {
            match kill(self.executor.as_ref(), &self.run, KILL_GRACE).await {
                Ok(Killed::Gone | Killed::NeverStarted) => return true,
                Ok(Killed::StillAlive) => {
                    tracing::error!(task.id = %self.held.task_id, host = self.name, "a run's processes survive KILL");
                }
                Err(error) => {
                    tracing::warn!(task.id = %self.held.task_id, host = self.name, error = %error_chain(&error), "a run could not be ended on its host yet");
                }
            }
            if self.replica.shutdown.sleep(pause).await {
                break;
            }
            pause = (pause * 2).min(Duration::from_secs(30));
        }
        false
    }

    /// Judges what the CLI printed and how it ended, and settles the task accordingly.
    pub(super) async fn settle_exit(
        &self,
        parser: execution::Parser,
        code: Option<i32>,
        reason: ExitReason,
    ) -> Result<(), StoreError> {
        let tail = stderr_tail(self.executor.as_ref(), &self.run, STDERR_TAIL).await;
        let tail = tail.unwrap_or_default();
        let outcome = parser.finish(code, reason, &tail, jiff::Timestamp::now());
        let error = outcome.error.as_deref().map(|e| clean_text(e, MAX_REASON));
        let receipt = |status| Receipt {
            status,
            duration_seconds: Some(self.since.elapsed().as_secs_f64().round()),
            summary: outcome.summary.as_deref().map(|s| clean_text(s, 16 << 10)),
            artifacts: Vec::new(),
            error: error.clone(),
            usage: outcome.usage,
        };
        let (how, receipt) = match outcome.kind {
            OutcomeKind::Succeeded => {
                let sound = until_stored!(
                    self.replica,
                    self.replica.store.set_host_agent_sound(self.host_agent)
                );
                sound?;
                (Outcome::Completed, Some(receipt(ReceiptStatus::Completed)))
            }
            OutcomeKind::Failed => (Outcome::Failed, Some(receipt(ReceiptStatus::Failed))),
            OutcomeKind::TimedOut => (Outcome::TimedOut, None),
            // The CLI's account is at fault, not the task: the attempt is refunded.
            OutcomeKind::Quota { until } => {
                self.park(until, error.as_deref().unwrap_or("out of quota")).await?;
                (Outcome::Released, None)
            }
            OutcomeKind::Auth => {
                self.park(None, error.as_deref().unwrap_or("not logged in")).await?;
                (Outcome::Released, None)
            }
        };
        self.settle(how, error, receipt, None).await
    }

    /// Before the task is free again, or it would come straight back.
    async fn park(&self, until: Option<jiff::Timestamp>, reason: &str) -> Result<(), StoreError> {
        let store = &self.replica.store;
        let parked = until_stored!(self.replica, store.park_host_agent(&self.held, until, reason))?;
        if let Some(until) = parked {
            tracing::warn!(task.id = %self.held.task_id, host = self.name, %until, reason, "a CLI cannot work for now; it is parked, and the attempt is refunded");
        }
        Ok(())
    }

    /// Ends the lease without a word from the CLI: a failed attempt.
    pub(super) async fn fail(&self, reason: &str) -> Result<(), StoreError> {
        self.settle(Outcome::Failed, Some(reason.to_owned()), None, None).await
    }

    /// Ends the lease, then clears up on the host.
    pub(super) async fn settle(
        &self,
        outcome: Outcome,
        reason: Option<String>,
        receipt: Option<Receipt>,
        wait_secs: Option<i32>,
    ) -> Result<(), StoreError> {
        let end =
            EndLease { held: self.held, outcome, reason, wait_secs, receipt, actor: self.actor() };
        match end_lease(&self.replica, end).await? {
            Ended::Now(status) => {
                tracing::info!(task.id = %self.held.task_id, lease = self.held.lease.0, host = self.name, outcome = ?outcome, %status, "run is settled");
                self.bury().await;
                Ok(())
            }
            Ended::Before => {
                self.bury().await;
                Ok(())
            }
            Ended::Not(_) => self.lease_is_gone().await,
        }
    }

    /// What the run left on its host shrinks to a tombstone, which keeps the gate shut.
    async fn bury(&self) {
        if let Err(error) = tombstone(self.executor.as_ref(), &self.run).await {
            tracing::warn!(task.id = %self.held.task_id, host = self.name, error = %error_chain(&error), "a run's folder was not cleared up");
        }
    }
}

/// Gives a task back whose run has not begun: not an attempt.
pub(super) async fn release(
    replica: &Replica,
    held: HeldLease,
    reason: &str,
    wait_secs: Option<i32>,
) -> Result<(), StoreError> {
    let end = EndLease {
        held,
        outcome: Outcome::Released,
        reason: Some(clean_text(reason, MAX_REASON)),
        wait_secs,
        receipt: None,
        actor: replica.actor(),
    };
    end_lease(replica, end).await.map(|_| ())
}

async fn end_lease(replica: &Replica, end: EndLease) -> Result<Ended, StoreError> {
    let backoff = replica.config.tasks.retry_backoff;
    let ended =
        until_stored!(replica, replica.store.end_leases(std::slice::from_ref(&end), backoff))?;
    replica.wake_ready();
    Ok(ended.into_iter().next().unwrap_or(Ended::Before))
}
