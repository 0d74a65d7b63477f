//! Where a setting comes from: its key in the file, the variable that overrides it, and the bounds that all share.

use std::{fmt, ops::RangeInclusive, time::Duration};

use super::{
    Secret,
    error::ConfigError,
    value::{Count, FromText, Secrets, Text},
};

/// A key and the variable that overrides it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    key: &'static str,
    env: Option<&'static str>,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.env {
            Some(env) => write!(f, "{} ({env})", self.key),
            None => f.write_str(self.key),
        }
    }
}

const fn both(key: &'static str, env: &'static str) -> Setting {
    Setting { key, env: Some(env) }
}

const fn only(key: &'static str) -> Setting {
    Setting { key, env: None }
}

pub(super) const LISTEN: Setting = both("server.listen", "AGENT_FLEET_LISTEN");
pub(super) const REPLICA_ID: Setting = both("server.replica_id", "AGENT_FLEET_REPLICA_ID");
pub(super) const OPEN_CONNECTIONS: Setting =
    both("server.max_connections", "AGENT_FLEET_MAX_CONNECTIONS");
pub(super) const REQUESTS: Setting = both("server.max_requests", "AGENT_FLEET_MAX_REQUESTS");
pub(super) const AGENT_REQUESTS: Setting =
    both("server.max_requests_per_agent", "AGENT_FLEET_MAX_REQUESTS_PER_AGENT");
pub(super) const CLIENT_TIMEOUT: Setting =
    both("server.client_timeout", "AGENT_FLEET_CLIENT_TIMEOUT");
pub(super) const DRAIN_GRACE: Setting = both("server.drain_grace", "AGENT_FLEET_DRAIN_GRACE");
pub(super) const DATABASE_URL: Setting = both("database.url", "DATABASE_URL");
pub(super) const LISTEN_URL: Setting = both("database.listen_url", "AGENT_FLEET_LISTEN_URL");
pub(super) const MAX_CONNECTIONS: Setting =
    both("database.max_connections", "AGENT_FLEET_DB_CONNECTIONS");
pub(super) const AUTH_MODE: Setting = both("auth.mode", "AGENT_FLEET_AUTH_MODE");
pub(super) const ADMIN_TOKEN: Setting = both("auth.admin_token", "AGENT_FLEET_ADMIN_TOKEN");
pub(super) const OPERATOR_TOKEN: Setting =
    both("auth.operator_token", "AGENT_FLEET_OPERATOR_TOKEN");
pub(super) const VIEWER_TOKEN: Setting = both("auth.viewer_token", "AGENT_FLEET_VIEWER_TOKEN");
pub(super) const ENROLLMENT_TOKEN: Setting =
    both("auth.enrollment_token", "AGENT_FLEET_ENROLLMENT_TOKEN");
pub(super) const SHARED_AGENT_TOKEN: Setting =
    both("auth.shared_agent_token", "AGENT_FLEET_SHARED_AGENT_TOKEN");
pub(super) const INTERVAL: Setting = both("dispatch.interval", "AGENT_FLEET_DISPATCH_INTERVAL");
pub(super) const GRACE: Setting = both("dispatch.undecided_grace", "AGENT_FLEET_UNDECIDED_GRACE");
pub(super) const HEARTBEAT: Setting =
    both("lease.heartbeat_interval", "AGENT_FLEET_HEARTBEAT_INTERVAL");
pub(super) const MISSES: Setting = both("lease.heartbeat_misses", "AGENT_FLEET_HEARTBEAT_MISSES");
pub(super) const RESERVATION: Setting = only("lease.assign_reservation");
pub(super) const REPLICA_TTL: Setting = both("lease.replica_ttl", "AGENT_FLEET_REPLICA_TTL");
pub(super) const TIMEOUT: Setting = both("tasks.timeout", "AGENT_FLEET_TASK_TIMEOUT");
pub(super) const MAX_RETRIES: Setting = both("tasks.max_retries", "AGENT_FLEET_MAX_RETRIES");
pub(super) const BACKOFF: Setting = both("tasks.retry_backoff", "AGENT_FLEET_RETRY_BACKOFF");
pub(super) const RETENTION: Setting = only("tasks.retention");
pub(super) const FORGEJO_URL: Setting = both("forgejo.url", "AGENT_FLEET_FORGEJO_URL");
pub(super) const FORGEJO_TOKEN: Setting = both("forgejo.token", "AGENT_FLEET_FORGEJO_TOKEN");
pub(super) const WEBHOOK_SECRET: Setting =
    both("forgejo.webhook_secret", "AGENT_FLEET_WEBHOOK_SECRET");
pub(super) const REPOS: Setting = only("forgejo.repos");
pub(super) const LOG_FORMAT: Setting = both("log.format", "AGENT_FLEET_LOG_FORMAT");
pub(super) const LOG_LEVEL: Setting = both("log.level", "RUST_LOG");

/// The environment over the file. An empty variable counts as absent.
pub(super) struct Sources<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Sources<'_> {
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn pick<T: FromText>(
        &self,
        setting: Setting,
        file: Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match setting.env.and_then(|name| Some((name, self.variable(name)?))) {
            Some((name, text)) => from_override(name, setting, &text).map(Some),
            None => Ok(file),
        }
    }

    pub(super) fn text<T: FromText>(
        &self,
        setting: Setting,
        file: Option<Text<T>>,
    ) -> Result<Option<T>, ConfigError> {
        self.pick(setting, file.map(|text| text.0))
    }

    /// A duration that may not be zero.
    pub(super) fn span(
        &self,
        setting: Setting,
        file: Option<Text<Duration>>,
        default: Duration,
    ) -> Result<Duration, ConfigError> {
        nonzero(setting, self.text(setting, file)?.unwrap_or(default))
    }

    pub(super) fn count(
        &self,
        setting: Setting,
        file: Option<Count>,
        default: u32,
        allowed: RangeInclusive<u32>,
    ) -> Result<u32, ConfigError> {
        let count = self.pick(setting, file.map(|count| count.0))?.unwrap_or(default);
        if allowed.contains(&count) {
            return Ok(count);
        }
        let problem =
            format!("is {count}; it must be from {} to {}", allowed.start(), allowed.end());
        Err(ConfigError::invalid(setting, problem))
    }

    /// Tokens travel in an HTTP header, so only what a header can carry is one.
    pub(super) fn tokens(
        &self,
        setting: Setting,
        file: Option<Secrets>,
    ) -> Result<Vec<Secret>, ConfigError> {
        let tokens = self.secrets(setting, file)?;
        if tokens.iter().any(|token| !token.expose().bytes().all(|b| b.is_ascii_graphic())) {
            let problem =
                "holds a space, a control or a non-ASCII character; use letters and digits";
            return Err(ConfigError::invalid(setting, problem));
        }
        Ok(tokens)
    }

    pub(super) fn secrets(
        &self,
        setting: Setting,
        file: Option<Secrets>,
    ) -> Result<Vec<Secret>, ConfigError> {
        let secrets = self.pick(setting, file)?.unwrap_or_default().0;
        // A secret read from a file with its last line break is the classic mismatch with the forge.
        if secrets.iter().any(|secret| secret.expose().contains(['\0', '\n', '\r'])) {
            let problem = "holds a NUL or a line break; remove it";
            return Err(ConfigError::invalid(setting, problem));
        }
        Ok(secrets)
    }
}

/// Reads what a variable or flag holds.
pub(super) fn from_override<T: FromText>(
    name: &'static str,
    setting: Setting,
    text: &str,
) -> Result<T, ConfigError> {
    T::from_text(text).map_err(|problem| ConfigError::Override { name, key: setting.key, problem })
}

/// Refuses a duration of zero.
pub(super) fn nonzero(key: impl ToString, duration: Duration) -> Result<Duration, ConfigError> {
    if duration.is_zero() {
        return Err(ConfigError::invalid(key, "is zero; write a duration such as \"30s\""));
    }
    Ok(duration)
}
