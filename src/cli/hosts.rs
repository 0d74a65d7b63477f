//! `agent-fleet hosts`: the hosts that are pushed to.

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::{
    Outcome,
    client::{Client, ClientError, segment},
    terminal::{self, cell, print, table},
};

/// Arguments of `hosts`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the hosts, one line for each CLI they offer.
    List {
        /// Only those that are `online`, `draining`, `offline` or `disabled`.
        #[arg(long)]
        status: Option<crate::model::HostStatus>,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Probe a host now, from every replica that lists it, and show what each found. Exit code 1 when none reaches it.
    Check {
        /// Which host; all of them unless given.
        host_id: Option<String>,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Let a host finish what it has and give it nothing new.
    Drain(Named),
    /// Give a drained host work again.
    Resume(Named),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// Which host.
    host_id: String,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs `hosts`.
pub(super) async fn run(args: Args) -> Outcome {
    let client = Client::from_env()?;
    match args.command {
        Command::List { status, json } => {
            let query = status.map(|s| ("status", s.to_string())).into_iter().collect();
            let list = super::list::fetch(&client, "/api/v1/hosts", query, usize::MAX).await?;
            show(&list, super::list::items(&list), json)
        }
        Command::Check { host_id, json } => check(&client, host_id, json).await,
        Command::Drain(named) => {
            let host = act(&client, &named.host_id, "drain").await?;
            show(&host, std::slice::from_ref(&host), named.json)
        }
        Command::Resume(named) => {
            let host = act(&client, &named.host_id, "resume").await?;
            show(&host, std::slice::from_ref(&host), named.json)
        }
    }
}

/// `POST /api/v1/hosts/{id}/{act}`: the host as it is then.
async fn act(client: &Client, host_id: &str, act: &str) -> Result<Value, ClientError> {
    let path = format!("/api/v1/hosts/{}/{act}", segment(host_id));
    client.post(&path, &json!({})).await
}

/// Hosts, one line for each of their CLIs; `shown` is what programs get.
fn show(shown: &Value, hosts: &[Value], as_json: bool) -> Outcome {
    if as_json {
        return Ok(print(&(terminal::json(shown) + "\n"))?);
    }
    let mut rows = Vec::new();
    for host in hosts {
        let agents = host["agents"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.extend(agents.iter().map(|agent| row(host, agent)));
        if agents.is_empty() {
            rows.push(row(host, &Value::Null));
        }
    }
    let headings =
        ["HOST", "STATUS", "HOSTNAME", "TYPE", "RUNNING", "PARKED UNTIL", "CAPABILITIES", "REASON"];
    Ok(print(&table(headings, &rows))?)
}

fn row(host: &Value, agent: &Value) -> [String; 8] {
    let slots = match agent {
        Value::Null => String::new(),
        _ => format!("{}/{}", cell(agent, "running"), cell(agent, "max_concurrency")),
    };
    let reason = match cell(host, "reason") {
        none if none.is_empty() => cell(agent, "parked_reason"),
        reason => reason,
    };
    [
        cell(host, "host_id"),
        cell(host, "status"),
        cell(host, "hostname"),
        cell(agent, "agent_type"),
        slots,
        cell(agent, "parked_until"),
        cell(agent, "capabilities"),
        reason,
    ]
}

async fn check(client: &Client, host_id: Option<String>, as_json: bool) -> Outcome {
    let ids = match host_id {
        Some(id) => vec![id],
        None => {
            let list = super::list::fetch(client, "/api/v1/hosts", Vec::new(), usize::MAX).await?;
            super::list::items(&list).iter().map(|host| cell(host, "host_id")).collect()
        }
    };
    let hosts = try_join_all(ids.iter().map(|id| act(client, id, "check"))).await?;
    if as_json {
        print(&(terminal::json(&json!({"items": hosts, "next_cursor": null})) + "\n"))?;
    } else {
        let mut rows = Vec::new();
        for host in &hosts {
            let replicas = host["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
            for replica in replicas {
                let status = if replica["online"] == true { "online" } else { "offline" };
                rows.push([
                    cell(host, "host_id"),
                    cell(replica, "replica_id"),
                    status.to_owned(),
                    cell(replica, "checked_at"),
                    cell(replica, "reason"),
                ]);
            }
            if replicas.is_empty() {
                let none = String::new;
                rows.push([
                    cell(host, "host_id"),
                    none(),
                    cell(host, "status"),
                    none(),
                    cell(host, "reason"),
                ]);
            }
        }
        print(&table(["HOST", "REPLICA", "STATUS", "CHECKED AT", "REASON"], &rows))?;
    }
    let bad: Vec<String> = hosts
        .iter()
        .filter(|host| host["status"] == "offline" || host["status"] == "disabled")
        .map(|host| cell(host, "host_id"))
        .collect();
    if bad.is_empty() {
        Ok(())
    } else {
        Err(anyhow::anyhow!("no replica reaches: {}", bad.join(", ")).into())
    }
}
