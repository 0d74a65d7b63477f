//! One connection to a host: an `ssh` master process, spoken to over its control socket.

use std::{
    fmt, fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use openssh::{ControlPersist, KnownHosts, Session, SessionBuilder, Stdio};
use tokio::{
    io::AsyncWriteExt,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{
    executor::{ConnectFailure, ExecError, Output, Script, read_bounded},
    local::code_of,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// ssh gives a connection up after three of these without an answer.
const ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// A master that nobody uses ends after this many seconds, also when we were killed.
const IDLE_SECS: NonZeroUsize = NonZeroUsize::new(60).expect("60 is not zero");
/// How long the master, a local process, has for an answer.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// Where to connect to, and how.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) hostname: String,
    pub(super) user: Option<String>,
    pub(super) port: u16,
    pub(super) key: Option<PathBuf>,
    pub(super) known_hosts: Option<PathBuf>,
    pub(super) control_directory: PathBuf,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hostname, self.port)
    }
}

impl Target {
    fn failure(&self, reason: ConnectFailure, detail: impl Into<String>) -> ExecError {
        ExecError::Connect { target: self.to_string(), reason, detail: detail.into() }
    }

    /// Finds plainly what ssh would only hint at.
    fn check_files(&self) -> Result<(), ExecError> {
        let readable = |path: &Option<PathBuf>, reason| match path {
            Some(path) => fs::File::open(path)
                .map(drop)
                .map_err(|e| self.failure(reason, format!("{}: {e}", path.display()))),
            None => Ok(()),
        };
        readable(&self.key, ConnectFailure::BadKey)?;
        readable(&self.known_hosts, ConnectFailure::HostKeyUnknown)
    }

    fn builder(&self) -> SessionBuilder {
        let mut builder = SessionBuilder::default();
        builder
            .port(self.port)
            .known_hosts_check(KnownHosts::Strict)
            .connect_timeout(CONNECT_TIMEOUT)
            .server_alive_interval(ALIVE_INTERVAL)
            .control_persist(ControlPersist::IdleFor(IDLE_SECS))
            .control_directory(&self.control_directory);
        if let Some(user) = &self.user {
            builder.user(user.clone());
        }
        if let Some(key) = &self.key {
            builder.keyfile(key);
        }
        if let Some(known_hosts) = &self.known_hosts {
            // ssh reads a list of words here (ssh_config(5)); quoted, a space does not end the path.
            builder.user_known_hosts_file(format!("\"{}\"", known_hosts.display()));
        }
        builder
    }

    fn connect_error(&self, error: openssh::Error) -> ExecError {
        match error {
            openssh::Error::Connect(e) if e.get_ref().is_none() => {
                ExecError::Spawn { program: "ssh", source: e }
            }
            openssh::Error::Master(e) => {
                let detail = format!("{}: {e}", self.control_directory.display());
                self.failure(ConnectFailure::Other, detail)
            }
            openssh::Error::Connect(e) => {
                let said = e.to_string();
                self.failure(failure_from_log(&said), last_line(&said))
            }
            other => self.failure(ConnectFailure::Other, other.to_string()),
        }
    }
}

/// What ssh's log means. Its exit code is 255 for all of these (ssh(1)), so its words are all there is.
fn failure_from_log(log: &str) -> ConnectFailure {
    let has = |words: &[&str]| words.iter().any(|word| log.contains(word));
    if has(&["REMOTE HOST IDENTIFICATION HAS CHANGED", "differs from the key for the IP"]) {
        ConnectFailure::HostKeyMismatch
    } else if has(&["host key is known for", "Host key verification failed"]) {
        ConnectFailure::HostKeyUnknown
    } else if has(&["UNPROTECTED PRIVATE KEY FILE", "Load key ", "bad permissions"]) {
        ConnectFailure::BadKey
    } else if has(&["Permission denied", "Too many authentication failures"]) {
        ConnectFailure::AuthRefused
    } else if has(&[
        "Connection refused",
        "timed out",
        "No route to host",
        "Network is unreachable",
        "Could not resolve",
        "Connection closed by",
        "Connection reset by",
    ]) {
        ConnectFailure::Unreachable
    } else {
        ConnectFailure::Other
    }
}

fn last_line(text: &str) -> String {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default().to_owned()
}

/// An authenticated connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// None once closed.
    session: tokio::sync::RwLock<Option<Session>>,
    _counted: crate::metrics::SshSession,
    control_socket: PathBuf,
    slots: Arc<Semaphore>,
}

impl Connection {
    /// Connects. Never drop this future: its `ssh` would be left behind.
    pub(super) async fn open(target: &Target, slots: usize) -> Result<Self, ExecError> {
        target.check_files()?;
        let session = target.builder().connect_mux(&target.hostname).await;
        let session = session.map_err(|e| target.connect_error(e))?;
        Ok(Self {
            control_socket: session.control_socket().to_owned(),
            session: tokio::sync::RwLock::new(Some(session)),
            _counted: crate::metrics::SshSession::open(),
            slots: Arc::new(Semaphore::new(slots)),
        })
    }

    pub(super) fn control_socket(&self) -> &Path {
        &self.control_socket
    }

    /// The right to run one script, if one is free.
    pub(super) fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// Asks the master, which says nothing about the network behind it.
    pub(super) async fn is_alive(&self) -> bool {
        let check = async {
            match self.session.read().await.as_ref() {
                Some(session) => session.check().await.is_ok(),
                None => false,
            }
        };
        tokio::time::timeout(CHECK_LIMIT, check).await.unwrap_or(false)
    }

    /// Lets no new script in, waits for those that run, and ends the master.
    pub(super) async fn close(&self) {
        self.slots.close();
        let session = self.session.write().await.take();
        if let Some(session) = session
            && let Err(error) = session.close().await
        {
            tracing::debug!(%error, "ssh master was already gone");
        }
    }

    /// Runs a script to its end. `None` when the connection was closed before, so it did not run.
    pub(super) async fn run(&self, script: &Script) -> Result<Option<Output>, openssh::Error> {
        let session = self.session.read().await;
        let Some(session) = session.as_ref() else { return Ok(None) };
        let mut child = session
            .command("sh")
            .arg("-c")
            .arg(script.text)
            .arg("sh")
            .args(&script.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .await?;
        let (stdin, stdout, stderr) =
            (child.stdin().take(), child.stdout().take(), child.stderr().take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(openssh::Error::ChildIo(io::Error::other("a pipe is missing")));
        };
        let write = async move {
            // A script that ends without reading its input is no error.
            let _ = stdin.write_all(&script.stdin).await;
        };
        let ((), stdout, stderr) = tokio::join!(write, read_bounded(stdout), read_bounded(stderr));
        let code = match child.wait().await {
            Ok(status) => code_of(status),
            // How the crate shows exit code 127.
            Err(openssh::Error::Remote(e)) if e.kind() == io::ErrorKind::NotFound => 127,
            Err(error) => return Err(error),
        };
        let io = openssh::Error::ChildIo;
        Ok(Some(Output { code, stdout: stdout.map_err(io)?, stderr: stderr.map_err(io)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_s_words_become_reasons() {
        for (log, reason) in [
            ("connect to host h port 22: Connection refused", ConnectFailure::Unreachable),
            (
                "Could not resolve hostname h: Name or service not known",
                ConnectFailure::Unreachable,
            ),
            (
                "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.",
                ConnectFailure::HostKeyMismatch,
            ),
            (
                "No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.",
                ConnectFailure::HostKeyUnknown,
            ),
            ("a@h: Permission denied (publickey).", ConnectFailure::AuthRefused),
            (
                "Load key \"/k\": error in libcrypto\na@h: Permission denied (publickey).",
                ConnectFailure::BadKey,
            ),
            ("something new", ConnectFailure::Other),
        ] {
            assert_eq!(failure_from_log(log), reason, "{log}");
        }
    }
}
