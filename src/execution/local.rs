//! Scripts on this machine, without SSH.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
};

use futures_util::future::BoxFuture;
use tokio::{io::AsyncWriteExt, process::Command};

use super::executor::{ExecError, Executor, Output, Script, read_bounded};

/// What a script, and so a CLI, inherits of our environment: what sshd would give it too. The rest holds our own secrets
/// (`DATABASE_URL`, tokens).
const INHERITED: &[&str] = &[
    "HOME",
    "PATH",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
];

/// Runs scripts as children of this process.
#[derive(Debug, Clone)]
pub struct LocalExecutor {
    environment: Vec<(String, String)>,
}

impl Default for LocalExecutor {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalExecutor {
    /// Takes over what a login would set of this process's environment.
    pub fn new() -> Self {
        let environment = INHERITED
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect();
        Self { environment }
    }

    /// Another value for a variable, such as `HOME`.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    async fn run(&self, script: Script) -> Result<Output, ExecError> {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(script.text)
            .arg("sh")
            .args(&script.args)
            .env_clear()
            .envs(self.environment.iter().map(|(n, v)| (n, v)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C on our terminal must not reach a script halfway through starting a run.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ExecError::Spawn { program: "sh", source })?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(lost(io::Error::other("a pipe to the script is missing")));
        };
        let write = async move {
            // A script that ends without reading its input is no error.
            let _ = stdin.write_all(&script.stdin).await;
        };
        let ((), stdout, stderr) = tokio::join!(write, read_bounded(stdout), read_bounded(stderr));
        let status = child.wait().await.map_err(lost)?;
        Ok(Output {
            code: code_of(status),
            stdout: stdout.map_err(lost)?,
            stderr: stderr.map_err(lost)?,
        })
    }
}

impl Executor for LocalExecutor {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        Box::pin(async move {
            let limit = script.time_limit;
            match tokio::time::timeout(limit, self.run(script)).await {
                Ok(result) => result,
                Err(_) => Err(ExecError::TimedOut { target: "localhost".to_owned(), limit }),
            }
        })
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn lost(source: io::Error) -> ExecError {
    ExecError::Lost { target: "localhost".to_owned(), source: Box::new(source) }
}

/// As a shell has it: 128 and the signal's number when a signal ended it.
pub(super) fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
