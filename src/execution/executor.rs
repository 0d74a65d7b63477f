//! The one seam between us and a host: run a fixed script, give it bytes, collect what it prints.

use std::{fmt::Debug, io, time::Duration};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt};

/// At most this many bytes of stdout, and of stderr, are kept of one script.
pub const MAX_OUTPUT: usize = 8 << 20;

/// Runs scripts on one host. A trait, because tests inject faults here.
pub trait Executor: Send + Sync + Debug {
    /// Runs `sh -c <text> sh <args…>` on the host. Every act of this module may be repeated, so a caller may try again
    /// after any error; what the error tells is whether the script can have run ([`ExecError::never_ran`]).
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>>;

    /// Lets the next script use a fresh connection, where there are connections.
    fn reconnect(&self) -> BoxFuture<'_, ()>;
}

/// One call of [`Executor::exec`].
#[derive(Debug, Clone)]
pub struct Script {
    /// POSIX `sh`. Fixed at compile time: data never becomes part of it.
    pub text: &'static str,
    /// Its positional parameters. Visible in process lists of the host, so never secret.
    pub args: Vec<String>,
    /// Its standard input.
    pub stdin: Vec<u8>,
    /// Given up after this long; the script may run on.
    pub time_limit: Duration,
}

/// What a script left.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Its exit code; 128 and more when a signal ended it.
    pub code: i32,
    /// At most [`MAX_OUTPUT`] bytes.
    pub stdout: Vec<u8>,
    /// At most [`MAX_OUTPUT`] bytes.
    pub stderr: Vec<u8>,
}

/// Why no connection could be made, as an operator needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectFailure {
    /// Refused, timed out, no route, no such name.
    #[error("the host cannot be reached")]
    Unreachable,
    /// The host shows another key than `known_hosts` has.
    #[error(
        "the host's key is not the one in known_hosts. If it was installed anew, remove the old line (`ssh-keygen -R`), \
         compare the new key's fingerprint with the host's own, and add it"
    )]
    HostKeyMismatch,
    /// `known_hosts` has no key of the host.
    #[error(
        "the host's key is not in known_hosts. Fetch it (`ssh-keyscan`), compare its fingerprint with the host's own, and add it"
    )]
    HostKeyUnknown,
    /// The account or the key was refused.
    #[error("the host refused the account or the key")]
    AuthRefused,
    /// The private key cannot be used.
    #[error("the private key cannot be used")]
    BadKey,
    /// Something else; the detail says what.
    #[error("the connection failed")]
    Other,
}

/// Why [`Executor::exec`] has no output.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No connection, so the script did not run.
    #[error("cannot connect to {target}: {reason}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    Connect {
        /// Host and port.
        target: String,
        /// In plain words.
        reason: ConnectFailure,
        /// What ssh said about it, may be empty.
        detail: String,
    },
    /// The connection broke while the script ran; how that ended is unknown.
    #[error("the connection to {target} was lost while a script ran")]
    Lost {
        /// Host and port.
        target: String,
        /// What broke.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A program of this machine (`ssh`, `sh`) could not be started, so the script did not run.
    #[error("cannot start `{program}` on this machine")]
    Spawn {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not done in time; how it ended is unknown.
    #[error("a script on {target} was not done within {} s", limit.as_secs())]
    TimedOut {
        /// Host and port.
        target: String,
        /// The time it had.
        limit: Duration,
    },
}

impl ExecError {
    /// True when the script is known not to have run.
    pub fn never_ran(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Spawn { .. })
    }
}

/// Reads to the end and keeps the first [`MAX_OUTPUT`] bytes.
pub(super) async fn read_bounded(from: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut from = from.take(MAX_OUTPUT as u64);
    from.read_to_end(&mut kept).await?;
    tokio::io::copy(&mut from.into_inner(), &mut tokio::io::sink()).await?;
    Ok(kept)
}
