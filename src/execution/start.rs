//! Starts a run, at most once, detached from the connection.

use std::time::Duration;

use super::{
    executor::{ExecError, Executor, Script},
    run_dir::{Answer, RunDir, RunError, script},
};
use crate::config::{PromptVia, Secret};

const START: &str = script!("run_dir", "process", "start");
const RUNNER: &str = script!("process", "runner");
const LEADER: &str = script!("process", "profile", "checkout", "leader");
/// A prompt may be a megabyte over a slow line.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// What to run. A run keeps it: later changes of the configuration do not reach it.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// An argument vector; never seen by a shell.
    pub command: Vec<String>,
    /// On stdin, or as a file whose path replaces `{prompt_file}` in `command`.
    pub prompt_via: PromptVia,
    /// Given to the CLI byte for byte.
    pub prompt: Vec<u8>,
    /// Set after `~/.profile` has run, so these win.
    pub env: Vec<(String, Secret)>,
    /// The task's repository is brought into its folder first; a failure to do so is the run's.
    pub checkout: bool,
    /// The host ends the run after this long, rounded up to seconds, whether anybody watches or not.
    pub timeout: Duration,
    /// Between TERM and KILL, rounded up to seconds.
    pub kill_grace: Duration,
}

/// How a start went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// This call started it.
    Started,
    /// The gate was shut before: the run was started earlier, or must not start. [`super::read()`] tells which.
    GateExists,
}

/// Why a run was not started, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The command or environment cannot be handed over; nothing was sent.
    #[error("{0}")]
    Invalid(String),
    /// It did not start and will not: the attempt may be refunded.
    #[error("the run was not started")]
    NotStarted(#[source] RunError),
    /// It may have started. [`super::read()`] will tell, and [`super::kill()`] sees to it that it does not later.
    #[error("whether the run was started is not known")]
    Unknown(#[source] RunError),
}

impl StartError {
    /// True when the run has not started and, from this call, never will.
    pub fn is_known_not_started(&self) -> bool {
        matches!(self, Self::Invalid(_) | Self::NotStarted(_))
    }
}

/// Starts the run unless its gate is shut.
pub async fn start(
    executor: &dyn Executor,
    run: &RunDir,
    spec: &StartSpec,
) -> Result<Started, StartError> {
    let lines = spec_lines(spec)?;
    let via = match spec.prompt_via {
        PromptVia::Stdin => "stdin",
        PromptVia::File => "file",
    };
    let mut args = run.args();
    args.extend([
        whole_secs(spec.timeout).to_string(),
        whole_secs(spec.kill_grace).to_string(),
        via.to_owned(),
        lines.len().to_string(),
        spec.prompt.len().to_string(),
        RUNNER.to_owned(),
        LEADER.to_owned(),
        if spec.checkout { "yes" } else { "no" }.to_owned(),
    ]);
    let mut stdin = lines.into_bytes();
    stdin.extend_from_slice(&spec.prompt);
    let script = Script { text: START, args, stdin, time_limit: TIME_LIMIT };
    let answer = Answer::of(executor, script).await.map_err(|error| match &error {
        RunError::Exec(exec) if !ExecError::never_ran(exec) => StartError::Unknown(error),
        RunError::Exec(_) | RunError::Refused(_) => StartError::NotStarted(error),
        RunError::Garbled { .. } => StartError::Unknown(error),
    })?;
    match answer.split().0.trim() {
        "started" => Ok(Started::Started),
        "exists" => Ok(Started::GateExists),
        "cut" => Err(StartError::NotStarted(RunError::Refused(
            "the prompt did not arrive whole".to_owned(),
        ))),
        _ => Err(StartError::Unknown(answer.garbled("word for the start"))),
    }
}

/// What leader.sh reads: the argument vector, then names and values, each list behind its length, a line each.
fn spec_lines(spec: &StartSpec) -> Result<String, StartError> {
    let invalid = |text: &str| Err(StartError::Invalid(text.to_owned()));
    match spec.command.first() {
        None => return invalid("the command is empty"),
        // The shell's `exec` would read it as an option.
        Some(program) if program.is_empty() || program.starts_with('-') => {
            return invalid("the command must start with a program's name");
        }
        Some(_) => {}
    }
    if spec.command.iter().any(|word| !is_line(word)) {
        return invalid("a word of the command holds a line break or NUL");
    }
    let mut lines = format!("{}\n", spec.command.len());
    for word in &spec.command {
        lines.push_str(word);
        lines.push('\n');
    }
    lines.push_str(&format!("{}\n", spec.env.len()));
    for (name, value) in &spec.env {
        if !is_variable(name) {
            return Err(StartError::Invalid(format!(
                "`{name}` cannot be the name of an environment variable"
            )));
        }
        if !is_line(value.expose()) {
            return Err(StartError::Invalid(format!(
                "the value of the environment variable {name} holds a line break or NUL"
            )));
        }
        lines.push_str(&format!("{name}\n{}\n", value.expose()));
    }
    Ok(lines)
}

fn is_line(text: &str) -> bool {
    !text.contains(['\n', '\0'])
}

/// A name that a shell can export and that is none of leader.sh's own.
fn is_variable(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts
        && !name.starts_with("af_")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Rounds up: a deadline of half a second is not none.
pub(super) fn whole_secs(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(command: &[&str], env: &[(&str, &str)]) -> StartSpec {
        StartSpec {
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            prompt_via: PromptVia::Stdin,
            prompt: Vec::new(),
            env: env.iter().map(|(n, v)| ((*n).to_owned(), Secret::new(*v))).collect(),
            checkout: false,
            timeout: Duration::from_secs(1),
            kill_grace: Duration::from_secs(1),
        }
    }

    #[test]
    fn refuses_what_lines_cannot_carry() {
        assert_eq!(
            spec_lines(&spec(&["a", "b c"], &[("X", "y")])).unwrap(),
            "2\na\nb c\n1\nX\ny\n"
        );
        for bad in [
            spec(&[], &[]),
            spec(&["-a"], &[]),
            spec(&["a", "b\nc"], &[]),
            spec(&["a", "b\0c"], &[]),
            spec(&["a"], &[("X Y", "")]),
            spec(&["a"], &[("1X", "")]),
            spec(&["a"], &[("", "")]),
            spec(&["a"], &[("af_run", "")]),
            spec(&["a"], &[("X", "secret\nvalue")]),
        ] {
            let error = spec_lines(&bad).unwrap_err();
            assert!(error.is_known_not_started());
            assert!(!error.to_string().contains("secret"));
        }
    }
}
