//! One attempt on a host: start a coding agent's CLI detached, follow its output, end it, judge how it went.
//!
//! A run costs money and outlives us: losing the connection or the replica must neither lose nor repeat it. So the CLI
//! is started by a few POSIX `sh` scripts (`scripts/`) that keep everything about a run in one directory of the host, and
//! every act here is repeatable from any replica.
//!
//! | file | what it does |
//! |---|---|
//! | [`executor`] | the one seam: run a fixed script on a host |
//! | [`local`], [`ssh`] | the two ways to do it |
//! | [`run_dir`] | names a run, and the format of what the scripts answer |
//! | [`start`](mod@start), [`read`](mod@read), [`kill`](mod@kill) | the acts on a run; `kill` also holds the tombstone |
//! | [`follow`](mod@follow) | reads until the end, and lets the caller say stop |
//! | [`probe`](mod@probe) | whether runs can work on a host |
//! | [`cli`], [`prompt`](mod@prompt) | what is run, and what it is given |
//! | [`parse`], [`outcome`] | what its output means |
//!
//! A run's directory is `<work_dir>/.agent-fleet/<fleet_id>/<task_id>.<run_lease>/`. Making it is **the gate**: whoever
//! makes it may start the run, and nobody can twice. In it:
//!
//! | name | holds |
//! |---|---|
//! | `prompt`, `stdout`, `stderr` | bytes |
//! | `pid`, `runner` | pid and start time of the CLI (which leads its process group), and of the process that waits for it |
//! | `boot_id` | the boot of the host that it was started in |
//! | `exit` | `<code> <exited, timeout or killed>`; written last, by rename |
//! | `closed/`, `tombstone/` | marks: nothing starts here any more; all else was removed |
//! | `spec` | environment and argument vector; removed before the CLI starts |

pub mod cli;
pub mod executor;
pub mod follow;
pub mod kill;
pub mod local;
pub mod outcome;
pub mod parse;
pub mod probe;
pub mod prompt;
pub mod read;
pub mod run_dir;
pub mod ssh;
mod ssh_connection;
pub mod start;

pub use cli::{built_in, task_environment};
pub use executor::{ConnectFailure, ExecError, Executor, Output, Script};
pub use follow::{Beat, End, Flow, Followed, WHOLE, follow};
pub use kill::{Killed, kill, tombstone};
pub use local::LocalExecutor;
pub use outcome::{Outcome, OutcomeKind};
pub use parse::Parser;
pub use probe::{ProbeReport, probe};
pub use prompt::prompt;
pub use read::{Chunk, ExitReason, RunState, read, stderr_tail};
pub use run_dir::{RunDir, RunError};
pub use ssh::{InvalidTarget, SshExecutor};
pub use start::{StartError, StartSpec, Started, start};
