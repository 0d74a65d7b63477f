//! `agent-fleet agents`: the agents that pull.

use serde_json::Value;

use super::{
    Outcome,
    client::Client,
    terminal::{cell, json, print, table},
};

/// Arguments of `agents`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the registered agents.
    List {
        /// Only those that are `online`, `draining` or `offline`.
        #[arg(long)]
        status: Option<crate::model::AgentStatus>,
        /// Only those that offer this capability, e.g. `agent:code`.
        #[arg(long)]
        capability: Option<String>,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// Runs `agents`.
pub(super) async fn run(args: Args) -> Outcome {
    let Command::List { status, capability, json: as_json } = args.command;
    let client = Client::from_env()?;
    let mut query = Vec::new();
    query.extend(status.map(|s| ("status", s.to_string())));
    query.extend(capability.map(|c| ("capability", c)));
    let list = super::list::fetch(&client, "/api/v1/agents", query, usize::MAX).await?;
    if as_json {
        return Ok(print(&(json(&list) + "\n"))?);
    }
    let row = |agent: &Value| {
        [
            cell(agent, "agent_id"),
            cell(agent, "status"),
            cell(agent, "agent_type"),
            format!("{}/{}", cell(agent, "leased"), cell(agent, "max_concurrency")),
            cell(agent, "last_heartbeat_at"),
            cell(agent, "hostname"),
            cell(agent, "capabilities"),
        ]
    };
    let headings =
        ["AGENT", "STATUS", "TYPE", "LEASED", "LAST HEARTBEAT", "HOSTNAME", "CAPABILITIES"];
    let rows: Vec<_> = super::list::items(&list).iter().map(row).collect();
    Ok(print(&table(headings, &rows))?)
}
