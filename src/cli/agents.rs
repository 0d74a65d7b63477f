//! `agent-fleet agents`: the agents that pull.

use serde_json::Value;

use super::{
    Outcome,
    client::{Client, ClientError, segment},
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
    /// Let an agent finish what it has and take nothing new.
    Drain(Named),
    /// Let a drained agent take work again.
    Resume(Named),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// Which agent.
    agent_id: String,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs `agents`.
pub(super) async fn run(args: Args) -> Outcome {
    let client = Client::from_env()?;
    let (shown, agents, as_json) = match args.command {
        Command::List { status, capability, json } => {
            let mut query = Vec::new();
            query.extend(status.map(|s| ("status", s.to_string())));
            query.extend(capability.map(|c| ("capability", c)));
            let list = super::list::fetch(&client, "/api/v1/agents", query, usize::MAX).await?;
            let agents = super::list::items(&list).to_vec();
            (list, agents, json)
        }
        Command::Drain(named) => act(&client, named, "drain").await?,
        Command::Resume(named) => act(&client, named, "resume").await?,
    };
    if as_json {
        return Ok(print(&(json(&shown) + "\n"))?);
    }
    let headings =
        ["AGENT", "STATUS", "TYPE", "LEASED", "LAST HEARTBEAT", "HOSTNAME", "CAPABILITIES"];
    let rows: Vec<_> = agents.iter().map(row).collect();
    Ok(print(&table(headings, &rows))?)
}

/// `POST /api/v1/agents/{id}/{act}`: the agent as it is then, for programs and for people.
async fn act(
    client: &Client,
    named: Named,
    act: &str,
) -> Result<(Value, Vec<Value>, bool), ClientError> {
    let path = format!("/api/v1/agents/{}/{act}", segment(&named.agent_id));
    let agent: Value = client.post(&path, &serde_json::json!({})).await?;
    Ok((agent.clone(), vec![agent], named.json))
}

fn row(agent: &Value) -> [String; 7] {
    [
        cell(agent, "agent_id"),
        cell(agent, "status"),
        cell(agent, "agent_type"),
        format!("{}/{}", cell(agent, "leased"), cell(agent, "max_concurrency")),
        cell(agent, "last_heartbeat_at"),
        cell(agent, "hostname"),
        cell(agent, "capabilities"),
    ]
}
