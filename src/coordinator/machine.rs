//! Which machine this is. A `localhost` host belongs to one machine, and two containers of one machine are two.

use crate::config;

/// The machine's id and its PID namespace, which tells containers apart; the host name where there is no id.
pub(super) fn machine() -> String {
    // machine-id(5); macOS has none.
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = if id.trim().is_empty() { hostname() } else { id.trim().to_owned() };
    match std::fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) => format!("{id}/{}", namespace.display()),
        Err(_) => id,
    }
}

/// The name of this machine, for people.
pub(super) fn hostname() -> String {
    config::host_name(|name| std::env::var(name).ok()).unwrap_or_else(|| "unknown".to_owned())
}
