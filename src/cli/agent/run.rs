//! One attempt: from the claim to the receipt.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::Mutex;

use super::{
    backoff::Backoff,
    claims::{Held, Stop},
    output::Output,
    receipt::{Verdict, verdict},
    session::Session,
    settle::{release, report_running, send_receipt},
};
use crate::{
    execution::{
        Beat, End, ExitReason, Flow, Followed, Killed, LocalExecutor, Outcome, Parser, RunDir,
        RunState, StartError, StartSpec, follow, kill, start, stderr_tail, task_environment,
        tombstone,
    },
    model::{Receipt, ReceiptStatus},
    telemetry::error_chain,
};

/// Between TERM and KILL.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// How often a kill is tried.
const KILL_TRIES: u32 = 5;
/// Output is sent this often at most.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// The coordinator has this long to take the last output before the receipt goes out.
const LAST_OUTPUT: Duration = Duration::from_secs(10);
/// A CLI that has said it is done may take so long to end.
const DONE_GRACE: Duration = Duration::from_secs(30);
/// When a task that could not be started may be tried again.
const START_AGAIN: Duration = Duration::from_secs(30);
/// Bytes of stderr that are looked at.
const STDERR_TAIL: usize = 4096;

/// Works on a claim until it is settled, or left on disk for the next start.
pub(super) async fn attempt(session: &Arc<Session>, held: &Arc<Held>) {
    session.claims.wait_for_older(held).await;
    let run = Run::new(session, held);
    if run.work().await {
        if let Err(error) = tombstone(&run.executor, &run.dir).await {
            let error = error_chain(&error);
            tracing::warn!(error, "the run's directory cannot be cleared");
        }
        if let Err(error) = session.dir.remove_claim(&held.claim) {
            tracing::error!(error = error_chain(&error), "a settled claim stays on disk");
        }
    } else {
        session.leave_unsettled();
    }
    session.claims.remove(held);
}

/// How the CLI ended, or did not.
enum Ended {
    /// It was judged.
    Judged(Outcome),
    /// It never ran, and will not.
    NotStarted(String),
    /// It was to be stopped first.
    Stopped,
}

struct Run<'a> {
    session: &'a Arc<Session>,
    held: &'a Arc<Held>,
    executor: LocalExecutor,
    dir: RunDir,
}

impl<'a> Run<'a> {
    fn new(session: &'a Arc<Session>, held: &'a Arc<Held>) -> Self {
        let dir = RunDir {
            work_dir: session.dir.path().to_string_lossy().into_owned(),
            fleet_id: session.fleet_id,
            task_id: held.task_id(),
            run_lease: held.claim.run_lease,
        };
        Self { session, held, executor: LocalExecutor::new(), dir }
    }

    /// True when the claim is settled.
    async fn work(&self) -> bool {
        let ended = if report_running(self.session, self.held).await {
            self.start_and_follow().await
        } else {
            Ended::Stopped
        };
        match ended {
            Ended::Judged(outcome) => self.report(outcome).await,
            Ended::NotStarted(why) => {
                release(self.session, self.held, &why, Some(START_AGAIN)).await
            }
            Ended::Stopped => self.stop().await,
        }
    }

    /// Starts the CLI, unless an earlier start of this agent did, and stays with it to its end.
    async fn start_and_follow(&self) -> Ended {
        let task = &self.held.claim.task;
        let cli = &self.session.options.cli;
        let limit = Duration::from_secs(u64::try_from(task.timeout_secs).unwrap_or(0).max(1));
        let spec = StartSpec {
            command: cli.command.clone(),
            prompt_via: cli.prompt,
            prompt: task.prompt.clone().unwrap_or_else(|| task.title.clone()).into_bytes(),
            env: task_environment(cli, task),
            checkout: false,
            timeout: cli.timeout.map_or(limit, |own| own.min(limit)),
            kill_grace: KILL_GRACE,
        };
        match start(&self.executor, &self.dir, &spec).await {
            Ok(started) => tracing::info!(task.id = %task.task_id, ?started, "at work"),
            Err(error @ (StartError::Invalid(_) | StartError::NotStarted(_))) => {
                return Ended::NotStarted(error_chain(&error));
            }
            // Following will tell.
            Err(error) => tracing::warn!(task.id = %task.task_id, error = error_chain(&error)),
        }
        let parser = Mutex::new(Parser::new(cli.output));
        let output = Mutex::new(Output::default());
        let followed = tokio::select! {
            followed = self.follow(&parser, &output) => followed,
            _ = self.held.stopped() => return Ended::Stopped,
        };
        self.judge(followed, parser.into_inner(), output.into_inner()).await
    }

    /// Reads to the end, handing what comes to the parser and to the coordinator.
    async fn follow(&self, parser: &Mutex<Parser>, output: &Mutex<Output>) -> Followed {
        let last_sent = &Mutex::new(Instant::now());
        let done_since = &Mutex::new(None);
        let sink = |beat: Beat| async move {
            if let Beat::Output { data, .. } = &beat {
                parser.lock().await.feed(data);
                output.lock().await.push(data);
            }
            let mut last_sent = last_sent.lock().await;
            if last_sent.elapsed() >= SEND_EVERY {
                output.lock().await.send(self.session, self.held).await;
                *last_sent = Instant::now();
            }
            let mut done_since = done_since.lock().await;
            if parser.lock().await.is_done() {
                let since: &mut Instant = done_since.get_or_insert_with(Instant::now);
                if since.elapsed() > DONE_GRACE {
                    return Ok(Flow::Stop);
                }
            } else {
                // Some go on after what looked like their last word.
                *done_since = None;
            }
            Ok::<_, std::convert::Infallible>(Flow::Continue)
        };
        match follow(&self.executor, &self.dir, 0, sink).await {
            Ok(followed) => followed,
            Err(never) => match never {},
        }
    }

    /// What the end of the run means.
    async fn judge(&self, followed: Followed, parser: Parser, mut output: Output) -> Ended {
        let sent = output.send(self.session, self.held);
        // What is not sent by then stays on this machine.
        let _ = tokio::time::timeout(LAST_OUTPUT, sent).await;
        let (code, reason) = match followed.end {
            End::Final(RunState::Exited { code, reason }) => (Some(code), reason),
            End::Final(RunState::Closed) => return Ended::Stopped,
            End::Final(RunState::NotStarted | RunState::Starting { .. }) => {
                let killed = self.kill().await;
                if killed == Some(Killed::NeverStarted) {
                    return Ended::NotStarted("the CLI did not start in time".to_owned());
                }
                (None, ExitReason::Killed)
            }
            End::Final(RunState::Vanished | RunState::Rebooted | RunState::Running) => {
                (None, ExitReason::Exited)
            }
            // It said that it was done, and hung on.
            End::Stopped => {
                self.kill().await;
                (None, ExitReason::Killed)
            }
        };
        let stderr = stderr_tail(&self.executor, &self.dir, STDERR_TAIL).await.unwrap_or_default();
        Ended::Judged(parser.finish(code, reason, &stderr, Timestamp::now()))
    }

    /// Sends the receipt, or gives the task back when the outcome says nothing about it.
    async fn report(&self, outcome: Outcome) -> bool {
        let claim = &self.held.claim;
        let now = Timestamp::now();
        let took = claim.claimed_at.duration_until(now).try_into().unwrap_or_default();
        match verdict(outcome, &claim.task, took, now) {
            Verdict::Receipt(receipt) => {
                tracing::info!(task.id = %claim.task.task_id, status = %receipt.status, "ended");
                if receipt.status == ReceiptStatus::Completed {
                    self.session.parking.clear();
                }
                send_receipt(self.session, self.held, &receipt).await
            }
            Verdict::Park { reason, wait } => {
                let wait = self.session.parking.park(wait);
                tracing::warn!(reason, wait_secs = wait.as_secs(), "no work is taken meanwhile");
                release(self.session, self.held, &reason, None).await
            }
        }
    }

    /// Ends the run, and gives the task back if it is still this agent's.
    async fn stop(&self) -> bool {
        if self.session.refused.is_cancelled() {
            self.held.stop(Stop::Lost);
        }
        let killed = self.kill().await;
        tracing::info!(task.id = %self.held.task_id(), ?killed, "stopped");
        let is_gone = matches!(killed, Some(Killed::NeverStarted | Killed::Gone));
        match self.held.stop_reason() {
            // None: an earlier process of this agent had already ended it.
            Some(Stop::Release) | None if is_gone => {
                release(self.session, self.held, "the agent was stopped", None).await
            }
            Some(Stop::Release) | None => {
                let error = Some("the agent was stopped, and its run did not end".to_owned());
                let receipt = Receipt {
                    status: ReceiptStatus::Failed,
                    duration_seconds: None,
                    summary: None,
                    artifacts: Vec::new(),
                    error,
                    usage: None,
                };
                send_receipt(self.session, self.held, &receipt).await
            }
            // The claim stays on disk while something of it may live: the next start kills it.
            Some(Stop::Lost) => is_gone,
        }
    }

    /// Ends the run for good and looks whether it is gone; `None` when nobody could tell.
    async fn kill(&self) -> Option<Killed> {
        let mut backoff = Backoff::default();
        let mut last = None;
        for _ in 0..KILL_TRIES {
            match kill(&self.executor, &self.dir, KILL_GRACE).await {
                Ok(Killed::StillAlive) => last = Some(Killed::StillAlive),
                Ok(killed) => return Some(killed),
                Err(error) => {
                    tracing::warn!(error = error_chain(&error), "the run cannot be ended");
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
        last
    }
}
