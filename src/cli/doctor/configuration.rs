//! The configuration, and what it says of the forge.

use super::{Finding, Findings};
use crate::config::{AuthMode, Config};

/// A secret of a webhook or a token that is shorter can be guessed.
const SHORT: usize = 16;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Findings::new("configuration");
    match config.check_serve() {
        Ok(()) => findings.ok("file and environment", "valid, and enough for `serve`"),
        Err(lacking) => findings.fail(
            "file and environment",
            format!("valid, but not enough for `serve`: {lacking}"),
            "set what is named; `agent-fleet config default` shows every key",
        ),
    }
    let auth = &config.auth;
    if auth.mode == AuthMode::Open {
        findings.warn(
            "auth",
            "auth.mode is open: whoever reaches the port may do everything",
            "for more than trying it on one machine, set auth.mode = \"token\" and auth.admin_token",
        );
    } else {
        let tokens = [
            ("admin_token", &auth.admin_token),
            ("operator_token", &auth.operator_token),
            ("viewer_token", &auth.viewer_token),
            ("enrollment_token", &auth.enrollment_token),
            ("shared_agent_token", &auth.shared_agent_token),
        ];
        let short: Vec<&str> = tokens
            .iter()
            .filter(|(_, list)| list.iter().any(|token| token.expose().len() < SHORT))
            .map(|(name, _)| *name)
            .collect();
        if short.is_empty() {
            findings.ok("auth", "tokens are wanted, and none is short");
        } else {
            findings.warn(
                "auth",
                format!("short enough to be guessed: {}", short.join(", ")),
                "make each of them with `openssl rand -hex 32`",
            );
        }
    }

    let mut forge = Findings::new("forge");
    let forgejo = &config.forgejo;
    if forgejo.webhook_secret.is_empty() {
        let says = "no forgejo.webhook_secret: every delivery is refused";
        let mend = "if a forge is to make tasks, set FORGEJO_WEBHOOK_SECRET here and the same in its webhook";
        forge.warn("webhook", says, mend);
    } else if forgejo.webhook_secret.iter().any(|secret| secret.expose().len() < SHORT) {
        let mend = "make one with `openssl rand -hex 32`; list old and new here while the forge is changed";
        forge.warn("webhook", "a forgejo.webhook_secret is short enough to be guessed", mend);
    } else {
        let repos = match forgejo.repos.as_slice() {
            [] => "every repository whose delivery is signed".to_owned(),
            repos => repos.join(", "),
        };
        forge.ok("webhook", format!("signed deliveries are taken from {repos}"));
    }
    if let Some(url) = forgejo.url.as_deref().filter(|url| url.starts_with("http://")) {
        forge.warn(
            "address",
            format!("forgejo.url is {url}: what is read from there can be changed on its way"),
            "use https:// unless the forge is on this machine or in a private network",
        );
    }
    findings.all.append(&mut forge.all);
    findings.all
}
