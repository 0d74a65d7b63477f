//! `[[hosts]]`: machines that are reached by SSH, or this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{Cli, cli::check_argument, error::ConfigError, file};
use crate::model::{AgentId, CapabilitySet};

/// No host agent has more slots; the same bound as an agent's `max_concurrency`.
const MAX_SLOTS: u32 = 10_000;

/// `[[hosts]]`
#[derive(Debug, Clone)]
pub struct Host {
    /// Names the host; the same alphabet as agent ids.
    pub host_id: String,
    /// Where sshd listens, or `localhost` for a local subprocess.
    pub hostname: String,
    /// Remote account.
    pub ssh_user: Option<String>,
    /// 22 unless set.
    pub ssh_port: u16,
    /// Private key.
    pub ssh_key_path: Option<PathBuf>,
    /// Where the host's key must stand.
    pub known_hosts_path: Option<PathBuf>,
    /// Absolute, or `~/…` in the remote account's home.
    pub work_dir: String,
    /// Clone the repository into the task's folder.
    pub checkout: bool,
    /// The CLIs it offers.
    pub agents: Vec<HostAgent>,
}

impl Host {
    /// True when it is this machine and no SSH is used.
    pub fn is_local(&self) -> bool {
        self.hostname == "localhost"
    }
}

/// One entry of `agents` in `[[hosts]]`.
#[derive(Debug, Clone)]
pub struct HostAgent {
    /// Names a `[cli.<agent_type>]`.
    pub agent_type: String,
    /// Slots, counted over all replicas.
    pub max_concurrency: u32,
    /// What it offers.
    pub capabilities: CapabilitySet,
}

/// Checks all hosts. `home` is what `~/` means in the paths of keys, which are files of this machine.
pub(super) fn check(
    hosts: Vec<file::Host>,
    cli: &BTreeMap<String, Cli>,
    home: Option<&str>,
) -> Result<Vec<Host>, ConfigError> {
    let mut seen = BTreeSet::new();
    let mut checked = Vec::new();
    for (i, host) in hosts.into_iter().enumerate() {
        let host = check_host(i, host, cli, home)?;
        if !seen.insert(host.host_id.clone()) {
            return Err(ConfigError::invalid(
                format!("hosts[{i}].host_id"),
                format!("is `{}`, which an earlier host has; give each its own", host.host_id),
            ));
        }
        checked.push(host);
    }
    Ok(checked)
}

fn check_host(
    i: usize,
    host: file::Host,
    cli: &BTreeMap<String, Cli>,
    home: Option<&str>,
) -> Result<Host, ConfigError> {
    let host_id = host.host_id.map(|text| text.0).unwrap_or_default();
    check_id(&format!("hosts[{i}].host_id"), &host_id)?;
    // From here on the error can say which host it is.
    let key = |name: &str| format!("hosts[{i}].{name} (of host {host_id})");
    let refuse = |name: &str, problem: &str| Err(ConfigError::invalid(key(name), problem));

    let hostname = host.hostname.map(|text| text.0).unwrap_or_default();
    if !is_ssh_word(&hostname, b".-_:%") {
        return refuse("hostname", "must be a host name, an IP address or `localhost`");
    }
    let ssh_user = host.ssh_user.map(|text| text.0).filter(|user| !user.is_empty());
    if ssh_user.as_deref().is_some_and(|user| !is_ssh_word(user, b".-_")) {
        return refuse("ssh_user", "must be an account name: letters, digits, `.`, `-`, `_`");
    }
    let ssh_port = match host.ssh_port.map_or(Ok(22), |port| u16::try_from(port.0)) {
        Ok(port) if port != 0 => port,
        _ => return refuse("ssh_port", "must be a port from 1 to 65535"),
    };
    let work_dir = host.work_dir.map(|text| text.0).unwrap_or_default();
    let placed =
        work_dir.starts_with('/') || work_dir.strip_prefix("~/").is_some_and(|d| !d.is_empty());
    if !placed {
        return refuse("work_dir", "must be an absolute path, or `~/…` in the account's home");
    }
    check_argument(&key("work_dir"), &work_dir)?;

    let path = |path: Option<PathBuf>| path.map(|path| expand(&path, home));
    let checked = Host {
        ssh_user,
        ssh_port,
        ssh_key_path: path(host.ssh_key_path),
        known_hosts_path: path(host.known_hosts_path),
        work_dir,
        checkout: host.checkout,
        agents: check_agents(i, &host_id, host.agents, cli)?,
        hostname,
        host_id: host_id.clone(),
    };
    if !checked.is_local() {
        check_readable(&key("ssh_key_path"), checked.ssh_key_path.as_deref())?;
        check_readable(&key("known_hosts_path"), checked.known_hosts_path.as_deref())?;
    }
    Ok(checked)
}

fn check_agents(
    i: usize,
    host_id: &str,
    agents: Vec<file::HostAgent>,
    cli: &BTreeMap<String, Cli>,
) -> Result<Vec<HostAgent>, ConfigError> {
    if agents.is_empty() {
        let key = format!("hosts[{i}].agents (of host {host_id})");
        return Err(ConfigError::invalid(key, "is empty; name at least one agent_type"));
    }
    let mut checked: Vec<HostAgent> = Vec::new();
    for (j, agent) in agents.into_iter().enumerate() {
        let key = |name: &str| format!("hosts[{i}].agents[{j}].{name} (of host {host_id})");
        let agent_type = agent.agent_type.map(|text| text.0).unwrap_or_default();
        check_id(&key("agent_type"), &agent_type)?;
        if !cli.contains_key(&agent_type) {
            let known = cli.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let problem = format!(
                "is `{agent_type}`, which is not a known CLI; write a [cli.{agent_type}] or use one of: {known}"
            );
            return Err(ConfigError::invalid(key("agent_type"), problem));
        }
        if checked.iter().any(|other| other.agent_type == agent_type) {
            let problem = format!(
                "is `{agent_type}`, which stands twice on this host; raise max_concurrency instead"
            );
            return Err(ConfigError::invalid(key("agent_type"), problem));
        }
        let max_concurrency = agent.max_concurrency.map_or(1, |count| count.0);
        if !(1..=MAX_SLOTS).contains(&max_concurrency) {
            let problem = format!("is {max_concurrency}; it must be from 1 to {MAX_SLOTS}");
            return Err(ConfigError::invalid(key("max_concurrency"), problem));
        }
        let names = agent.capabilities.into_iter().map(|text| text.0);
        let capabilities = CapabilitySet::offered(names)
            .map_err(|e| ConfigError::invalid(key("capabilities"), format!("is refused: {e}")))?;
        checked.push(HostAgent { agent_type, max_concurrency, capabilities });
    }
    Ok(checked)
}

/// Ids of hosts, replicas and agent types have the alphabet of agent ids: all appear in paths and in `host_id/agent_type`.
pub(super) fn check_id(key: &str, id: &str) -> Result<(), ConfigError> {
    let shape = "1 to 128 of A-Z a-z 0-9 . _ -";
    let problem = match AgentId::parse(id) {
        Ok(_) => return Ok(()),
        Err(_) if id.is_empty() => format!("is missing; expected {shape}"),
        Err(_) => format!("is `{}`; expected {shape}", id.escape_debug()),
    };
    Err(ConfigError::invalid(key, problem))
}

/// True for what can stand in an ssh command line without being taken for an option or for something else.
fn is_ssh_word(text: &str, also: &[u8]) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || also.contains(&b))
}

fn expand(path: &Path, home: Option<&str>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => Path::new(home).join(rest),
        _ => path.to_owned(),
    }
}

/// Opens the file, so that an unreadable key is found now and not at the first task.
fn check_readable(key: &str, path: Option<&Path>) -> Result<(), ConfigError> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        let problem = "is missing; a host that is not `localhost` needs it";
        return Err(ConfigError::invalid(key, problem));
    };
    let found = std::fs::File::open(path).and_then(|file| file.metadata());
    let problem = match found {
        Ok(metadata) if metadata.is_file() => return Ok(()),
        Ok(_) => "it is not a file".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(ConfigError::invalid(
        key,
        format!("names {}, which cannot be read: {problem}", path.display()),
    ))
}
