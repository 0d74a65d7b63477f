//! Reads a run's output from a byte offset, with the state of the run beside it.

use super::{
    executor::{Executor, MAX_OUTPUT, Script},
    run_dir::{Answer, RunDir, RunError, TIME_LIMIT, script},
};

const READ: &str = script!("run_dir", "process", "state", "read");
/// Room for what a login shell prints before the answer.
const MAX_CHUNK: usize = MAX_OUTPUT - (64 << 10);

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// No gate: nobody has tried, or the start is on its way.
    NotStarted,
    /// The gate is made, the CLI not there yet. Over 30 s of this is a failed start.
    Starting {
        /// Seconds since something last happened.
        age_secs: u64,
    },
    /// The CLI runs, or what it left is being ended.
    Running,
    /// It has ended, and all it printed is there.
    Exited {
        /// 128 and more: a signal. 127: the CLI was not found.
        code: i32,
        /// Who ended it.
        reason: ExitReason,
    },
    /// The processes are gone without leaving an exit code: somebody killed the runner.
    Vanished,
    /// The host booted since the start.
    Rebooted,
    /// The gate was shut before the CLI started, or only the tombstone is left: nothing will start.
    Closed,
}

impl RunState {
    /// True when nothing changes any more.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Exited { .. } | Self::Vanished | Self::Rebooted | Self::Closed)
    }
}

/// Who ended a CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// It did itself.
    Exited,
    /// The runner on the host, at the deadline.
    Timeout,
    /// [`super::kill()`].
    Killed,
}

/// Some output, and the state of the run. The state is older than the output: with [`RunState::Exited`], the output that
/// ends at `size` is all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Whole: its length was checked against what the host announced.
    pub data: Vec<u8>,
    /// Bytes of output there are by now.
    pub size: u64,
    /// Where the run stands.
    pub state: RunState,
}

/// Reads at most `max` bytes of stdout from `offset` on.
pub async fn read(
    executor: &dyn Executor,
    run: &RunDir,
    offset: u64,
    max: usize,
) -> Result<Chunk, RunError> {
    read_file(executor, run, "stdout", offset.to_string(), max).await
}

/// The last `max` bytes of stderr, as text.
pub async fn stderr_tail(
    executor: &dyn Executor,
    run: &RunDir,
    max: usize,
) -> Result<String, RunError> {
    let chunk = read_file(executor, run, "stderr", "tail".to_owned(), max).await?;
    Ok(String::from_utf8_lossy(&chunk.data).into_owned())
}

async fn read_file(
    executor: &dyn Executor,
    run: &RunDir,
    file: &str,
    from: String,
    max: usize,
) -> Result<Chunk, RunError> {
    let mut args = run.args();
    args.extend([file.to_owned(), from, max.min(MAX_CHUNK).to_string()]);
    let script = Script { text: READ, args, stdin: Vec::new(), time_limit: TIME_LIMIT };
    let answer = Answer::of(executor, script).await?;
    let (line, data) = answer.split();
    let mut words = line.split_whitespace();
    let size = words.next().and_then(|w| w.parse().ok());
    let len: Option<usize> = words.next().and_then(|w| w.parse().ok());
    let (Some(size), Some(len)) = (size, len) else {
        return Err(answer.garbled("length"));
    };
    let Some(state) = state_of(&words.collect::<Vec<_>>()) else {
        return Err(answer.garbled("state"));
    };
    let Some(data) = data.get(..len) else {
        return Err(answer.garbled("whole output"));
    };
    Ok(Chunk { data: data.to_vec(), size, state })
}

fn state_of(words: &[&str]) -> Option<RunState> {
    Some(match words {
        ["not_started"] => RunState::NotStarted,
        // A clock that was set back makes it negative.
        ["starting", age] => {
            let age_secs = age.parse::<i64>().ok()?.max(0).unsigned_abs();
            RunState::Starting { age_secs }
        }
        ["running"] => RunState::Running,
        ["exited", code, reason] => RunState::Exited {
            code: code.parse().ok()?,
            reason: match *reason {
                "exited" => ExitReason::Exited,
                "timeout" => ExitReason::Timeout,
                "killed" => ExitReason::Killed,
                _ => return None,
            },
        },
        ["vanished"] => RunState::Vanished,
        ["rebooted"] => RunState::Rebooted,
        ["closed"] => RunState::Closed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read() {
        assert_eq!(state_of(&["starting", "-3"]), Some(RunState::Starting { age_secs: 0 }));
        assert_eq!(
            state_of(&["exited", "143", "timeout"]),
            Some(RunState::Exited { code: 143, reason: ExitReason::Timeout })
        );
        for cut in [&["exited"][..], &["exited", "0"], &["exi"], &[], &["starting"]] {
            assert_eq!(state_of(cut), None);
        }
    }
}
