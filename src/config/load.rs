//! The file, the environment and the flags become one checked [`Config`]; the later of these wins.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::EnvFilter;

use super::{
    Auth, AuthMode, Cli, Config, Database, Dispatch, Forgejo, Lease, Log, LogFormat, Secret,
    Server, Tasks, cli,
    error::ConfigError,
    file::{self, File},
    host, replica_id,
    sources::*,
};
use crate::model::AgentId;

/// Read when no file is named and it exists.
const DEFAULT_PATH: &str = "agent-fleet.toml";

/// Bounds that keep products and database columns in range.
const MAX_MISSES: u32 = 1_000;
const MAX_RETRIES_LIMIT: u32 = 1_000;
const MAX_CONNECTIONS_LIMIT: u32 = 1_000;
const SERVER_LIMIT: u32 = 1_000_000;

/// What flags of the command line set.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<String>,
    /// `--replica-id`
    pub replica_id: Option<String>,
}

impl Config {
    /// Reads and checks everything that any command needs; `serve` also wants [`Self::check_serve`].
    ///
    /// `path` is what `--config` names; else `AGENT_FLEET_CONFIG` does; else `agent-fleet.toml` is read if it exists.
    /// `env` looks up one variable. `built_in` are the CLIs that need no `[cli.…]`.
    pub fn load(
        path: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
        flags: &Overrides,
        built_in: BTreeMap<String, Cli>,
    ) -> Result<Self, ConfigError> {
        let from = Sources(&env);
        let file = read(path, &from)?;
        let cli = cli::check(file.cli, built_in)?;
        Ok(Self {
            server: server(&from, file.server, flags)?,
            database: database(&from, file.database)?,
            auth: auth(&from, file.auth)?,
            dispatch: Dispatch {
                interval: from.span(INTERVAL, file.dispatch.interval, secs(10))?,
                // Zero is sensible: what no host can serve goes to pull agents at once.
                undecided_grace: from
                    .text(GRACE, file.dispatch.undecided_grace)?
                    .unwrap_or(secs(30)),
            },
            lease: Lease {
                heartbeat_interval: from.span(
                    HEARTBEAT,
                    file.lease.heartbeat_interval,
                    secs(60),
                )?,
                heartbeat_misses: from.count(
                    MISSES,
                    file.lease.heartbeat_misses,
                    3,
                    1..=MAX_MISSES,
                )?,
                assign_reservation: from.span(
                    RESERVATION,
                    file.lease.assign_reservation,
                    secs(600),
                )?,
                replica_ttl: from.span(REPLICA_TTL, file.lease.replica_ttl, secs(15))?,
            },
            tasks: tasks(&from, file.tasks)?,
            forgejo: forgejo(&from, file.forgejo)?,
            log: log(&from, file.log)?,
            hosts: host::check(file.hosts, &cli, from.variable("HOME").as_deref())?,
            cli,
        })
    }

    /// Checks what only `serve` needs: a database, and that nobody unknown can reach the API.
    pub fn check_serve(&self) -> Result<(), ConfigError> {
        if self.database.url.is_none() {
            let problem = "is missing; set it to postgres://user:password@host/database";
            return Err(ConfigError::invalid(DATABASE_URL, problem));
        }
        match self.auth.mode {
            AuthMode::Token if self.auth.admin_token.is_empty() => {
                let problem = "is missing; set it, or auth.mode = \"open\" on a loopback address";
                Err(ConfigError::invalid(ADMIN_TOKEN, problem))
            }
            AuthMode::Open if !self.server.listen.ip().to_canonical().is_loopback() => {
                let problem = format!(
                    "is \"open\", but {LISTEN} is {}, which others can reach; listen on 127.0.0.1 or use \"token\"",
                    self.server.listen
                );
                Err(ConfigError::invalid(AUTH_MODE, problem))
            }
            AuthMode::Token | AuthMode::Open => Ok(()),
        }
    }
}

fn read(named: Option<&Path>, from: &Sources<'_>) -> Result<File, ConfigError> {
    let named = named
        .map(Path::to_owned)
        .or_else(|| from.variable("AGENT_FLEET_CONFIG").map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None if Path::new(DEFAULT_PATH).exists() => PathBuf::from(DEFAULT_PATH),
        None => return Ok(File::default()),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => file::parse(&text, &path),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

fn server(
    from: &Sources<'_>,
    file: file::Server,
    flags: &Overrides,
) -> Result<Server, ConfigError> {
    let listen = match &flags.listen {
        Some(text) => from_override("--listen", LISTEN, text)?,
        None => from.text(LISTEN, file.listen)?.unwrap_or(([127, 0, 0, 1], 9090).into()),
    };
    let given = match &flags.replica_id {
        Some(id) => Some(id.clone()),
        None => from.text(REPLICA_ID, file.replica_id)?,
    };
    let replica_id = given.unwrap_or_else(|| replica_id::generate(from.0));
    host::check_id(&REPLICA_ID.to_string(), &replica_id)?;
    let count = |setting, file, default| -> Result<usize, ConfigError> {
        Ok(from.count(setting, file, default, 1..=SERVER_LIMIT)? as usize)
    };
    Ok(Server {
        listen,
        replica_id,
        max_connections: count(OPEN_CONNECTIONS, file.max_connections, 10_000)?,
        max_requests: count(REQUESTS, file.max_requests, 2_000)?,
        max_requests_per_agent: count(AGENT_REQUESTS, file.max_requests_per_agent, 100)?,
        client_timeout: from.span(CLIENT_TIMEOUT, file.client_timeout, secs(30))?,
        // Zero is sensible: without a balancer nobody has to turn away.
        drain_grace: from.text(DRAIN_GRACE, file.drain_grace)?.unwrap_or(secs(5)),
    })
}

fn database(from: &Sources<'_>, file: file::Database) -> Result<Database, ConfigError> {
    let url = |setting, file| -> Result<Option<Secret>, ConfigError> {
        Ok(from.text(setting, file)?.filter(|url: &Secret| !url.expose().is_empty()))
    };
    let max = from.count(MAX_CONNECTIONS, file.max_connections, 16, 1..=MAX_CONNECTIONS_LIMIT)?;
    Ok(Database {
        url: url(DATABASE_URL, file.url)?,
        listen_url: url(LISTEN_URL, file.listen_url)?,
        max_connections: max as usize,
    })
}

fn auth(from: &Sources<'_>, file: file::Auth) -> Result<Auth, ConfigError> {
    Ok(Auth {
        mode: from.text(AUTH_MODE, file.mode)?.unwrap_or(AuthMode::Token),
        admin_token: from.tokens(ADMIN_TOKEN, file.admin_token)?,
        operator_token: from.tokens(OPERATOR_TOKEN, file.operator_token)?,
        viewer_token: from.tokens(VIEWER_TOKEN, file.viewer_token)?,
        enrollment_token: from.tokens(ENROLLMENT_TOKEN, file.enrollment_token)?,
        shared_agent_token: from.tokens(SHARED_AGENT_TOKEN, file.shared_agent_token)?,
    })
}

fn tasks(from: &Sources<'_>, file: file::Tasks) -> Result<Tasks, ConfigError> {
    let timeout = from.span(TIMEOUT, file.timeout, secs(3600))?;
    if timeout < secs(1) {
        let problem = "is shorter than a second; the API counts it in seconds";
        return Err(ConfigError::invalid(TIMEOUT, problem));
    }
    Ok(Tasks {
        timeout,
        max_retries: from.count(MAX_RETRIES, file.max_retries, 2, 0..=MAX_RETRIES_LIMIT)?,
        // Zero is sensible: retry at once.
        retry_backoff: from.text(BACKOFF, file.retry_backoff)?.unwrap_or(secs(10)),
        retention: from.span(RETENTION, file.retention, secs(30 * 24 * 3600))?,
    })
}

fn forgejo(from: &Sources<'_>, file: file::Forgejo) -> Result<Forgejo, ConfigError> {
    let forgejo = Forgejo {
        // Paths are appended to it.
        url: from
            .text(FORGEJO_URL, file.url)?
            .map(|url| url.trim_end_matches('/').to_owned())
            .filter(|url| !url.is_empty()),
        token: from.text(FORGEJO_TOKEN, file.token)?.filter(|t| !t.expose().is_empty()),
        webhook_secret: from.secrets(WEBHOOK_SECRET, file.webhook_secret)?,
        repos: file.repos.into_iter().map(|text| text.0).collect(),
    };
    for pattern in &forgejo.repos {
        let parts = pattern.split_once('/');
        let fits = parts.is_some_and(|(owner, name)| {
            AgentId::parse(owner).is_ok() && (name == "*" || AgentId::parse(name).is_ok())
        });
        if !fits {
            let problem =
                format!("holds `{}`; expected `owner/name` or `owner/*`", pattern.escape_debug());
            return Err(ConfigError::invalid(REPOS, problem));
        }
    }
    if let Some(url) = &forgejo.url {
        let parsed: Result<http::Uri, _> = url.parse();
        let fits = parsed.is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && uri.query().is_none()
        });
        if !fits {
            // Not shown: somebody may have written a password into it.
            let problem = "must be the forge's root address such as \"https://forge.example\", without a password";
            return Err(ConfigError::invalid(FORGEJO_URL, problem));
        }
    }
    if forgejo.token.is_some() {
        if forgejo.repos.is_empty() {
            let problem = "is empty, but forgejo.token is set; list the repositories it may write to, such as \"org/*\"";
            return Err(ConfigError::invalid(REPOS, problem));
        }
        if forgejo.url.is_none() {
            let problem = "is missing, but forgejo.token is set; say which forge it is for";
            return Err(ConfigError::invalid(FORGEJO_URL, problem));
        }
        if forgejo.token.iter().any(|t| !t.expose().bytes().all(|b| b.is_ascii_graphic())) {
            let problem = "holds a space, a control or a non-ASCII character; copy it again";
            return Err(ConfigError::invalid(FORGEJO_TOKEN, problem));
        }
    }
    Ok(forgejo)
}

fn log(from: &Sources<'_>, file: file::Log) -> Result<Log, ConfigError> {
    let by_terminal =
        || if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
    let level = from
        .text(LOG_LEVEL, file.level)?
        .filter(|level| !level.trim().is_empty())
        .unwrap_or_else(|| "info".to_owned());
    if let Err(error) = EnvFilter::builder().parse(&level) {
        let problem = format!(
            "is `{level}`; expected such as \"info\" or \"info,agent_fleet=debug\": {error}"
        );
        return Err(ConfigError::invalid(LOG_LEVEL, problem));
    }
    Ok(Log { format: from.text(LOG_FORMAT, file.format)?.unwrap_or_else(by_terminal), level })
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
