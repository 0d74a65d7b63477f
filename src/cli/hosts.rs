//! `agent-fleet hosts`: the hosts that are pushed to.

use serde_json::Value;

use super::{
    Outcome,
    client::Client,
    terminal::{cell, json, print, table},
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
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// Runs `hosts`.
pub(super) async fn run(args: Args) -> Outcome {
    let Command::List { json: as_json } = args.command;
    let client = Client::from_env()?;
    let query = Vec::new();
    let list = super::list::fetch(&client, "/api/v1/hosts", query, usize::MAX).await?;
    if as_json {
        return Ok(print(&(json(&list) + "\n"))?);
    }
    let mut rows = Vec::new();
    for host in super::list::items(&list) {
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
    [
        cell(host, "host_id"),
        cell(host, "status"),
        cell(host, "hostname"),
        cell(agent, "agent_type"),
        slots,
        cell(agent, "parked_until"),
        cell(agent, "capabilities"),
        cell(host, "reason"),
    ]
}
