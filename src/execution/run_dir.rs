//! Names a run on its host, and reads what the scripts answer.

use std::time::Duration;

use uuid::Uuid;

use super::executor::{ExecError, Executor, Output, Script};
use crate::model::{Lease, TaskId};

/// Every line that a script answers starts with this; what a login shell prints before it is skipped.
const MARK: &[u8] = b"@agent-fleet@ ";
/// Time for a script that does one quick thing.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Joins the scripts that belong together into one text.
macro_rules! script {
    ($($name:literal),+) => { concat!($(include_str!(concat!("scripts/", $name, ".sh"))),+) };
}
pub(super) use script;

/// One run: where it lives on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    /// Absolute, or `~/…` in the home of the account there.
    pub work_dir: String,
    /// Keeps two fleets on one host apart.
    pub fleet_id: Uuid,
    /// The task.
    pub task_id: TaskId,
    /// The lease under which it started; a takeover keeps it.
    pub run_lease: Lease,
}

impl RunDir {
    /// The first arguments of every script that deals with a run.
    pub(super) fn args(&self) -> Vec<String> {
        vec![
            self.work_dir.clone(),
            self.fleet_id.to_string(),
            self.task_id.to_string(),
            self.run_lease.to_string(),
        ]
    }
}

/// Why an act on a run has no result. All of them may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The script could not be run, or nobody knows how it ended.
    #[error("the host did not answer")]
    Exec(#[from] ExecError),
    /// The host said no, in its own words.
    #[error("the host refused: {0}")]
    Refused(String),
    /// The answer is cut or none at all: `expected` says what was missing.
    #[error("the host's answer has no {expected}; its script ended with {code}, saying `{stderr}`")]
    Garbled {
        /// What was looked for.
        expected: &'static str,
        /// Exit code of the script.
        code: i32,
        /// The end of what it printed on stderr.
        stderr: String,
    },
}

/// What a script answered.
#[derive(Debug)]
pub(super) struct Answer {
    output: Output,
    /// Where the first answer's text begins in stdout.
    start: usize,
}

impl Answer {
    /// Runs a script and finds its answer.
    pub(super) async fn of(executor: &dyn Executor, script: Script) -> Result<Self, RunError> {
        let output = executor.exec(script).await?;
        let at = output.stdout.windows(MARK.len()).position(|w| w == MARK);
        let answer = Self { start: at.map_or(output.stdout.len(), |at| at + MARK.len()), output };
        if at.is_none() {
            return Err(answer.garbled("answer"));
        }
        let (line, _) = answer.split();
        match line.strip_prefix("refused ") {
            Some(why) => Err(RunError::Refused(why.trim().to_owned())),
            None => Ok(answer),
        }
    }

    /// The first line, and the bytes behind it.
    pub(super) fn split(&self) -> (String, &[u8]) {
        let rest = &self.output.stdout[self.start..];
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        (line, &rest[rest.len().min(end + 1)..])
    }

    /// Every answered line.
    pub(super) fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.output.stdout[self.start..]).into_owned();
        let mark = String::from_utf8_lossy(MARK);
        text.lines().map(|line| line.strip_prefix(&*mark).unwrap_or(line).to_owned()).collect()
    }

    /// The answer lacks something.
    pub(super) fn garbled(&self, expected: &'static str) -> RunError {
        let stderr = String::from_utf8_lossy(&self.output.stderr);
        let from = stderr.ceil_char_boundary(stderr.len().saturating_sub(300));
        let stderr = stderr[from..].trim().to_owned();
        RunError::Garbled { expected, code: self.output.code, stderr }
    }
}
