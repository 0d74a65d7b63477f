//! The file as it is written: every key optional, unknown keys refused.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::{
    AuthMode, LogFormat, OutputFormat, PromptVia, Secret,
    error::ConfigError,
    value::{Count, Secrets, Text},
};

/// A whole file; each field is a table of docs/configuration.md.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) database: Database,
    pub(super) auth: Auth,
    pub(super) dispatch: Dispatch,
    pub(super) lease: Lease,
    pub(super) tasks: Tasks,
    pub(super) forgejo: Forgejo,
    pub(super) log: Log,
    pub(super) hosts: Vec<Host>,
    pub(super) cli: BTreeMap<String, Cli>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) listen: Option<Text<SocketAddr>>,
    pub(super) replica_id: Option<Text<String>>,
    pub(super) max_connections: Option<Count>,
    pub(super) max_requests: Option<Count>,
    pub(super) max_requests_per_agent: Option<Count>,
    pub(super) client_timeout: Option<Text<Duration>>,
    pub(super) drain_grace: Option<Text<Duration>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Database {
    pub(super) url: Option<Text<Secret>>,
    pub(super) listen_url: Option<Text<Secret>>,
    pub(super) max_connections: Option<Count>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Auth {
    pub(super) mode: Option<Text<AuthMode>>,
    pub(super) admin_token: Option<Secrets>,
    pub(super) operator_token: Option<Secrets>,
    pub(super) viewer_token: Option<Secrets>,
    pub(super) enrollment_token: Option<Secrets>,
    pub(super) shared_agent_token: Option<Secrets>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Dispatch {
    pub(super) interval: Option<Text<Duration>>,
    pub(super) undecided_grace: Option<Text<Duration>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Lease {
    pub(super) heartbeat_interval: Option<Text<Duration>>,
    pub(super) heartbeat_misses: Option<Count>,
    pub(super) assign_reservation: Option<Text<Duration>>,
    pub(super) replica_ttl: Option<Text<Duration>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tasks {
    pub(super) timeout: Option<Text<Duration>>,
    pub(super) max_retries: Option<Count>,
    pub(super) retry_backoff: Option<Text<Duration>>,
    pub(super) retention: Option<Text<Duration>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Forgejo {
    pub(super) url: Option<Text<String>>,
    pub(super) token: Option<Text<Secret>>,
    pub(super) webhook_secret: Option<Secrets>,
    pub(super) repos: Vec<Text<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: Option<Text<LogFormat>>,
    pub(super) level: Option<Text<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Host {
    pub(super) host_id: Option<Text<String>>,
    pub(super) hostname: Option<Text<String>>,
    pub(super) ssh_user: Option<Text<String>>,
    pub(super) ssh_port: Option<Count>,
    pub(super) ssh_key_path: Option<PathBuf>,
    pub(super) known_hosts_path: Option<PathBuf>,
    pub(super) work_dir: Option<Text<String>>,
    pub(super) checkout: bool,
    pub(super) agents: Vec<HostAgent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostAgent {
    pub(super) agent_type: Option<Text<String>>,
    pub(super) max_concurrency: Option<Count>,
    pub(super) capabilities: Vec<Text<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cli {
    pub(super) command: Option<Vec<Text<String>>>,
    pub(super) prompt: Option<Text<PromptVia>>,
    pub(super) output: Option<Text<OutputFormat>>,
    pub(super) timeout: Option<Text<Duration>>,
    pub(super) env: Option<BTreeMap<String, Text<Secret>>>,
}

/// Reads the text of a file; `path` is for errors. The TOML parser's own errors print the line they are about, which
/// may hold a token; these do not.
pub(super) fn parse(text: &str, path: &Path) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let path = path.to_owned();
        let span = error.span().unwrap_or(0..0);
        let line = 1 + text.bytes().take(span.start).filter(|&b| b == b'\n').count();
        match DeTable::parse(text) {
            Ok(table) => {
                let key = find_in_table(table.get_ref(), &span)
                    .map_or_else(|| "the file".to_owned(), |keys| keys.concat());
                let problem = reword(error.message());
                // The leading dot comes from joining.
                ConfigError::File {
                    path,
                    line,
                    key: key.trim_start_matches('.').to_owned(),
                    problem,
                }
            }
            Err(error) => ConfigError::Syntax { path, line, problem: error.message().to_owned() },
        }
    })
}

/// The key under which `span` stands, in pieces: `.lease`, `.interval`, `[0]`.
fn find_in_table(table: &DeTable<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    table.iter().find_map(|(key, value)| {
        let name = format!(".{}", key.get_ref());
        if holds(&key.span(), span) {
            return Some(vec![name]);
        }
        find_in_value(value.get_ref(), &value.span(), span).map(|mut rest| {
            rest.insert(0, name);
            rest
        })
    })
}

/// As [`find_in_table`], for a value and where it stands. A table's own place is only its header, so what is inside is
/// looked at first.
fn find_in_value(
    value: &DeValue<'_>,
    at: &Range<usize>,
    span: &Range<usize>,
) -> Option<Vec<String>> {
    let inside = match value {
        DeValue::Table(table) => find_in_table(table, span),
        DeValue::Array(items) => items.iter().enumerate().find_map(|(i, item)| {
            find_in_value(item.get_ref(), &item.span(), span).map(|mut rest| {
                rest.insert(0, format!("[{i}]"));
                rest
            })
        }),
        _ => None,
    };
    inside.or_else(|| holds(at, span).then(Vec::new))
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Says what was expected and never what was given: serde's messages quote the value.
fn reword(message: &str) -> String {
    let expected = message.rsplit_once(", expected ").map(|(_, expected)| expected);
    if message.starts_with("unknown field ") {
        let known = expected.unwrap_or("nothing").trim_start_matches("one of ");
        return format!("is not a known key; known here: {known}");
    }
    match expected {
        Some(expected) if message.starts_with("invalid ") => {
            let expected = match expected {
                "a sequence" => "a list",
                "a boolean" => "true or false, without quotes",
                other => other,
            };
            format!("has the wrong type; expected {expected}")
        }
        _ => message.to_owned(),
    }
}
