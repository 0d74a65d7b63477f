//! Configuration: one TOML file, overridden by the environment, overridden by flags; checked in full before anything binds.

mod cli;
mod default;
mod error;
mod file;
mod host;
mod load;
mod replica_id;
mod sources;
#[cfg(test)]
mod tests;
mod value;

use std::{collections::BTreeMap, fmt, time::Duration};

pub use cli::{Cli, OutputFormat, PromptVia};
pub use default::DEFAULT_FILE;
pub use error::ConfigError;
pub use host::{Host, HostAgent};
pub use load::Overrides;
pub(crate) use replica_id::host_name;

/// A value that never shows in logs or errors.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself; the name says what the caller does.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Everything that can be configured; `docs/configuration.md` explains each key.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[database]`
    pub database: Database,
    /// `[auth]`
    pub auth: Auth,
    /// `[dispatch]`
    pub dispatch: Dispatch,
    /// `[lease]`
    pub lease: Lease,
    /// `[tasks]`
    pub tasks: Tasks,
    /// `[forgejo]`
    pub forgejo: Forgejo,
    /// `[log]`
    pub log: Log,
    /// `[[hosts]]`
    pub hosts: Vec<Host>,
    /// `[cli.<agent_type>]`, the built-in ones included.
    pub cli: BTreeMap<String, Cli>,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Address and port.
    pub listen: std::net::SocketAddr,
    /// Host name and a random suffix unless set.
    pub replica_id: String,
    /// Connections that are open at once.
    pub max_connections: usize,
    /// Requests that are worked on at once; a poll that waits is not.
    pub max_requests: usize,
    /// Requests of one agent at once, polls that wait included.
    pub max_requests_per_agent: usize,
    /// How long a client may take to send its headers, to send its body, or to take its reply.
    pub client_timeout: Duration,
    /// How long a replica that was told to stop still serves, so that balancers turn away first.
    pub drain_grace: Duration,
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// Required by `serve`; holds a password, hence secret.
    pub url: Option<Secret>,
    /// For LISTEN, past a pooler; `url` unless set.
    pub listen_url: Option<Secret>,
    /// Pool size.
    pub max_connections: usize,
}

/// Whether a token is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// Each call carries a token.
    Token,
    /// No token; loopback only.
    Open,
}

/// `[auth]`; each is one or more tokens, so that it can be rotated.
#[derive(Debug, Clone)]
pub struct Auth {
    /// `token` or `open`.
    pub mode: AuthMode,
    /// May do everything.
    pub admin_token: Vec<Secret>,
    /// May read, create, assign, retry, cancel.
    pub operator_token: Vec<Secret>,
    /// May read.
    pub viewer_token: Vec<Secret>,
    /// May register an agent.
    pub enrollment_token: Vec<Secret>,
    /// May make every call of every agent, for agents that know one token for all. Off when empty.
    pub shared_agent_token: Vec<Secret>,
}

/// `[dispatch]`
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// At most this long between two cycles.
    pub interval: Duration,
    /// How long a task waits undecided before phase 2 may make it `http_pull`.
    pub undecided_grace: Duration,
}

/// `[lease]`
#[derive(Debug, Clone)]
pub struct Lease {
    /// What agents are told.
    pub heartbeat_interval: Duration,
    /// After this many missed heartbeats an agent is lost.
    pub heartbeat_misses: u32,
    /// How long a pin waits for its target.
    pub assign_reservation: Duration,
    /// A replica silent this long is dead; it beats every third of that.
    pub replica_ttl: Duration,
}

impl Lease {
    /// How long an agent may be silent.
    pub fn agent_ttl(&self) -> Duration {
        self.heartbeat_interval * self.heartbeat_misses
    }
}

/// `[tasks]`
#[derive(Debug, Clone)]
pub struct Tasks {
    /// Default time limit of an attempt.
    pub timeout: Duration,
    /// Default number of retries.
    pub max_retries: u32,
    /// Wait before the first retry; doubles with each, up to an hour.
    pub retry_backoff: Duration,
    /// How long finished tasks are kept.
    pub retention: Duration,
}

/// `[forgejo]`
#[derive(Debug, Clone)]
pub struct Forgejo {
    /// Root address of the forge.
    pub url: Option<String>,
    /// For writing back.
    pub token: Option<Secret>,
    /// One or more; without any, every delivery is refused.
    pub webhook_secret: Vec<Secret>,
    /// `org/repo` or `org/*`; empty: every signed delivery.
    pub repos: Vec<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// `text` on a terminal, else `json`, unless set.
    pub format: LogFormat,
    /// As `RUST_LOG` has it.
    pub level: String,
}
