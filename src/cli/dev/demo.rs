//! The demo: a host and a pull agent whose CLI is a harmless script, and two issues, one for each of them.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::Value;

use super::{forge::Issue, story};
use crate::{
    cli::{
        agent,
        client::Client,
        list,
        terminal::{cell, one_line, print},
    },
    config::{Cli, Host, HostAgent, OutputFormat, PromptVia, Secret},
    model::{AgentId, CapabilitySet},
};

/// What is run in place of a coding agent.
const SCRIPT: &str = include_str!("demo_cli.sh");
/// The `[cli.…]` that runs it.
pub(super) const CLI: &str = "demo-cli";
const HOST: &str = "demo-host";
const AGENT: &str = "demo-agent";
const BODY: &str = "An issue of `agent-fleet dev`. Nothing has to be done.";
/// Only the host offers it.
const ON_HOST: &str = "agent:demo";
/// Only the pull agent offers it.
const ON_AGENT: &str = "agent:docs";
/// How long host and agent may take to be ready.
const READY_WAIT: Duration = Duration::from_secs(30);
/// How long both tasks may take.
const STORY_WAIT: Duration = Duration::from_secs(120);

/// Writes the script into `dir`; the CLI that runs it.
pub(super) fn cli(dir: &Path) -> anyhow::Result<Cli> {
    let path = dir.join("demo-cli.sh");
    std::fs::write(&path, SCRIPT).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Cli {
        command: vec!["sh".to_owned(), path_text(&path)?],
        prompt: PromptVia::Stdin,
        output: OutputFormat::Raw,
        timeout: None,
        env: BTreeMap::new(),
    })
}

/// This machine as a host, working in `dir`.
pub(super) fn host(dir: &Path) -> anyhow::Result<Host> {
    Ok(Host {
        host_id: HOST.to_owned(),
        hostname: "localhost".to_owned(),
        ssh_user: None,
        ssh_port: 22,
        ssh_key_path: None,
        known_hosts_path: None,
        work_dir: path_text(&dir.join("host"))?,
        checkout: false,
        agents: vec![HostAgent {
            agent_type: CLI.to_owned(),
            max_concurrency: 2,
            capabilities: CapabilitySet::offered([ON_HOST])?,
        }],
    })
}

/// A pull agent in this process, working in `dir`.
pub(super) async fn agent(client: Client, cli: Cli, dir: &Path) -> anyhow::Result<agent::Options> {
    Ok(agent::Options {
        client,
        agent_id: AgentId::parse(AGENT)?,
        agent_type: CLI.to_owned(),
        hostname: agent::hostname().await,
        capabilities: CapabilitySet::offered([ON_AGENT])?,
        max_concurrency: 2,
        work_dir: dir.join("agent"),
        cli,
        drain_wait: Duration::ZERO,
    })
}

/// Waits until both can work.
pub(super) async fn wait_until_ready(client: &Client) -> anyhow::Result<()> {
    let mut lacking = String::new();
    let ready = async {
        loop {
            let hosts = list::fetch(client, "/api/v1/hosts", Vec::new(), usize::MAX).await?;
            let agents = list::fetch(client, "/api/v1/agents", Vec::new(), usize::MAX).await?;
            let host = standing(&hosts, "host_id", HOST);
            let agent = standing(&agents, "agent_id", AGENT);
            lacking = match (host, agent) {
                (None, None) => return anyhow::Ok(()),
                (host, agent) => [host, agent].into_iter().flatten().collect::<Vec<_>>().join(", "),
            };
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    match tokio::time::timeout(READY_WAIT, ready).await {
        Ok(result) => result,
        Err(_) => bail!("not ready after {} s: {lacking}", READY_WAIT.as_secs()),
    }
}

/// Why it cannot work; `None` when it is online.
fn standing(list: &Value, field: &str, id: &str) -> Option<String> {
    let Some(item) = list::items(list).iter().find(|item| item[field] == id) else {
        return Some(format!("{id} is not known yet"));
    };
    let status = cell(item, "status");
    (status != "online").then(|| one_line(&format!("{id} is {status} {}", cell(item, "reason"))))
}

/// Delivers two issues and tells what becomes of them.
pub(super) async fn play(client: &Client, secret: &Secret) -> anyhow::Result<()> {
    // A forge never gives a number twice; neither does the clock.
    let number = Timestamp::now().as_second();
    let issues = [
        Issue { number, title: "Say hello from a host", body: BODY, label: ON_HOST },
        Issue {
            number: number + 1,
            title: "Say hello from a pull agent",
            body: BODY,
            label: ON_AGENT,
        },
    ];
    let mut keys = Vec::new();
    for issue in &issues {
        let accepted = issue.deliver(client, secret).await?;
        let line = format!(
            "\nThe forge delivers {}, \"{}\", labelled {}: {}.",
            issue.key(),
            issue.title,
            issue.label,
            one_line(&accepted.result)
        );
        print(&line)?;
        keys.push(issue.key());
    }
    print("\n\nWhat becomes of them:\n\n")?;
    let Ok(told) = tokio::time::timeout(STORY_WAIT, story::tell(client, &keys)).await else {
        bail!("the tasks did not end within {} s", STORY_WAIT.as_secs());
    };
    if !told? {
        bail!("not both tasks were completed; see above");
    }
    Ok(print("\nBoth are completed.\n")?)
}

fn path_text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().context("the path of the data folder is not UTF-8")?;
    Ok(text.to_owned())
}
