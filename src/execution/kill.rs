//! Ends a run for good, and clears up after it.

use std::time::Duration;

use super::{
    executor::{Executor, Script},
    run_dir::{Answer, RunDir, RunError, TIME_LIMIT, script},
    start::whole_secs,
};

const KILL: &str = script!("run_dir", "process", "state", "kill");
const TOMBSTONE: &str = script!("run_dir", "process", "state", "tombstone");

/// What a kill came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// The CLI never started, and now cannot: the gate is shut.
    NeverStarted,
    /// No process of it is left; looked at, not assumed.
    Gone,
    /// Processes are left that KILL did not end, or that cannot be told from a stranger's (both the CLI and its runner
    /// were killed by somebody else, and some of their group lives).
    StillAlive,
}

/// Shuts the gate, and ends the run if it has started: TERM to the CLI's process group, `grace`, KILL. Nothing is
/// signalled unless pid and start time both match. May be repeated.
pub async fn kill(
    executor: &dyn Executor,
    run: &RunDir,
    grace: Duration,
) -> Result<Killed, RunError> {
    let mut args = run.args();
    args.push(whole_secs(grace).to_string());
    // The script's own waits: the grace twice at most, and some seconds.
    let time_limit = TIME_LIMIT + grace * 2;
    let script = Script { text: KILL, args, stdin: Vec::new(), time_limit };
    let answer = Answer::of(executor, script).await?;
    match answer.split().0.trim() {
        "never_started" => Ok(Killed::NeverStarted),
        "gone" => Ok(Killed::Gone),
        "alive" => Ok(Killed::StillAlive),
        _ => Err(answer.garbled("word for the kill")),
    }
}

/// Removes what the run left in its directory, once its receipt is stored; the gate stays shut.
///
/// Refused while the run is at work or may still start. May be repeated.
pub async fn tombstone(executor: &dyn Executor, run: &RunDir) -> Result<(), RunError> {
    let (args, stdin) = (run.args(), Vec::new());
    let script = Script { text: TOMBSTONE, args, stdin, time_limit: TIME_LIMIT };
    let answer = Answer::of(executor, script).await?;
    match answer.split().0.trim() {
        "buried" => Ok(()),
        _ => Err(answer.garbled("word for the tombstone")),
    }
}
