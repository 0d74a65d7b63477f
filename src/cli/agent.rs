//! `agent-fleet agent`: a worker that pulls tasks over HTTP and runs a coding agent's CLI for each.
//!
//! The CLI runs detached, by the same wrapper as on SSH hosts (see [`crate::execution`]), so a restart of this program
//! costs no run: what is claimed stands on disk, the next registration resumes it, and the run is followed on. A token, a
//! session and all calls are in `session`, the loop that asks for work in `pull`, one attempt in `run`.

mod backoff;
mod claims;
mod output;
mod parking;
mod pull;
mod receipt;
mod run;
mod session;
mod settle;
mod work_dir;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use self::{
    claims::{Held, Stop},
    session::Session,
    work_dir::WorkDir,
};
use super::{
    Failure, Outcome,
    client::{Client, ClientError},
};
use crate::{
    config::{Cli, Config},
    model::{AgentId, CapabilitySet, TaskId},
    shutdown::Shutdown,
    telemetry::error_chain,
};

/// How long runs that are told to end, and receipts on their way, may take at the end.
const LAST_WAIT: Duration = Duration::from_secs(60);
/// How long taking leave may take.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// Arguments of `agent`. `AGENT_FLEET_URL` says where the coordinator is; the first registration needs an enrollment
/// token in `AGENT_FLEET_TOKEN`, later ones use the token that is kept in the work directory.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names this agent, for ever: 1 to 128 of A-Z a-z 0-9 . _ -
    #[arg(long, value_parser = parse_agent_id)]
    agent_id: AgentId,
    /// What kind of agent it is, e.g. `codex-cli`.
    #[arg(long = "type", value_name = "TYPE")]
    agent_type: String,
    /// A requirement that it satisfies, e.g. `agent:code`. May be repeated.
    #[arg(long = "capability", value_name = "CAPABILITY")]
    capabilities: Vec<String>,
    /// So many tasks at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_concurrency: u32,
    /// Where tasks are worked on, and where this agent keeps its token.
    #[arg(long)]
    work_dir: PathBuf,
    /// The `[cli.<name>]` of the configuration, or the built-in one, that is run; the type unless given.
    #[arg(long, value_name = "NAME")]
    cli: Option<String>,
    /// On SIGTERM or Ctrl-C, wait so long for running tasks before they are stopped and given back.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    drain_wait: Duration,
}

fn parse_agent_id(text: &str) -> Result<AgentId, crate::model::InvalidAgentId> {
    AgentId::parse(text)
}

/// What [`run()`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The coordinator; its token enrolls.
    pub client: Client,
    /// Names the agent.
    pub agent_id: AgentId,
    /// What kind of agent it is.
    pub agent_type: String,
    /// The machine, for people.
    pub hostname: String,
    /// What it offers.
    pub capabilities: CapabilitySet,
    /// Tasks at once, 1 to 10,000.
    pub max_concurrency: u32,
    /// Its folder; made if missing.
    pub work_dir: PathBuf,
    /// What is run for each task.
    pub cli: Cli,
    /// How long running tasks may go on after being asked to stop.
    pub drain_wait: Duration,
}

impl Options {
    /// The body of a registration that keeps these tasks.
    fn registration(&self, mut resume: Vec<TaskId>) -> Value {
        resume.dedup();
        json!({
            "agent_id": self.agent_id, "agent_type": self.agent_type, "hostname": self.hostname,
            "capabilities": self.capabilities, "max_concurrency": self.max_concurrency, "resume": resume,
        })
    }
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum AgentError {
    #[error("cannot {act} {}", path.display())]
    WorkDir { act: &'static str, path: PathBuf, source: std::io::Error },
    #[error("another agent already works in {}", path.display())]
    InUse { path: PathBuf },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the coordinator answered a registration with nothing")]
    NoAnswer,
}

/// Runs `agent`.
pub(super) async fn command(args: Args, config: &Config) -> Outcome {
    let name = args.cli.as_ref().unwrap_or(&args.agent_type);
    let Some(cli) = config.cli.get(name) else {
        let known: Vec<&str> = config.cli.keys().map(String::as_str).collect();
        let known = known.join(", ");
        let error =
            anyhow::anyhow!("there is no CLI `{name}`; name one of {known}, or add [cli.{name}]");
        return Err(Failure::Usage(error));
    };
    let capabilities =
        CapabilitySet::offered(&args.capabilities).map_err(|e| Failure::Usage(e.into()))?;
    crate::telemetry::init(&config.log)?;
    let options = Options {
        client: Client::from_env()?,
        agent_id: args.agent_id,
        agent_type: args.agent_type,
        hostname: hostname().await,
        capabilities,
        max_concurrency: args.max_concurrency,
        work_dir: args.work_dir,
        cli: cli.clone(),
        drain_wait: args.drain_wait,
    };
    let shutdown = Shutdown::new();
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        if let Ok(signal) = crate::shutdown::signal().await {
            tracing::info!(%signal, "finishing what runs");
            on_signal.trigger();
        }
    });
    Ok(run(options, &shutdown).await?)
}

/// Registers, heartbeats, pulls tasks and runs them, until `shutdown` is triggered.
///
/// Then it waits for what still runs, after `drain_wait` stops it and gives it back, and takes its leave. An error means
/// that the coordinator refused this agent, or that its folder cannot be used.
pub async fn run(options: Options, shutdown: &Shutdown) -> Result<(), AgentError> {
    let dir = WorkDir::open(&options.work_dir)?;
    let earlier = dir.claims()?;
    let fleet_id = dir.fleet_id()?;
    let slots = usize::try_from(options.max_concurrency).unwrap_or(usize::MAX);
    let slots = Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS)));
    let drain_wait = options.drain_wait;
    let session = Arc::new(Session::new(options, dir, fleet_id));
    for claim in earlier {
        session.claims.insert(&Held::resumed(claim));
    }
    tokio::select! {
        () = shutdown.triggered() => return Ok(()),
        registered = session.register(0) => if registered.is_err() {
            return session.failure();
        },
    }
    // All that is spawned ends with this future.
    let mut attempts = JoinSet::new();
    for held in session.claims.all() {
        tracing::info!(task.id = %held.task_id(), lease = %held.lease(), "going on with a run of before");
        let (session, slot) = (Arc::clone(&session), Arc::clone(&slots).try_acquire_owned());
        attempts.spawn(async move {
            run::attempt(&session, &held).await;
            drop(slot);
        });
    }
    let mut heartbeats = JoinSet::new();
    heartbeats.spawn({
        let session = Arc::clone(&session);
        async move { session.heartbeats().await }
    });
    tokio::select! {
        _ = pull::pull(&session, &slots, &mut attempts, shutdown) => {}
        () = session.refused.cancelled() => {}
    }
    drain(&session, drain_wait).await;
    heartbeats.shutdown().await;
    leave(&session).await;
    session.failure()
}

/// Waits for the runs, then ends them.
async fn drain(session: &Session, drain_wait: Duration) {
    tokio::select! {
        () = session.claims.wait_until_empty() => return,
        () = tokio::time::sleep(drain_wait) => {}
        () = session.refused.cancelled() => {}
    }
    let reason = if session.refused.is_cancelled() { Stop::Lost } else { Stop::Release };
    for held in session.claims.all() {
        held.stop(reason);
    }
    if tokio::time::timeout(LAST_WAIT, session.claims.wait_until_empty()).await.is_err() {
        tracing::warn!("some runs did not end; the next start takes care of them");
    }
}

/// Deregisters, unless something is left that the next start can settle.
async fn leave(session: &Session) {
    if session.refused.is_cancelled() || !session.all_settled() {
        return;
    }
    match tokio::time::timeout(LEAVE_WAIT, session.deregister()).await {
        Ok(Ok(())) => tracing::info!("deregistered"),
        Ok(Err(error)) => tracing::warn!(
            error = error_chain(&error),
            "cannot deregister; the coordinator will notice"
        ),
        Err(_) => tracing::warn!("cannot deregister in time; the coordinator will notice"),
    }
}

/// This machine's name as `uname` (POSIX) has it.
pub(super) async fn hostname() -> String {
    let output = tokio::process::Command::new("uname").arg("-n").output().await;
    let name = output.ok().and_then(|o| String::from_utf8(o.stdout).ok()).unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
