//! `agent-fleet task`: what an operator does with tasks.

mod logs;
mod show;
mod submit;

use serde_json::{Value, json};

use super::{
    Outcome,
    client::{Client, segment},
    list,
    terminal::{cell, json as json_text, print, table},
};
use crate::model::{ExecutionMode, Status};

/// Arguments of `task`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of a text for people.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a task.
    Submit(submit::Args),
    /// List tasks.
    List(ListArgs),
    /// Show a task with its events and receipts.
    Show {
        /// The task's UUID or key, e.g. `org/repo#42`.
        task: String,
    },
    /// Print what a task's last run wrote.
    Logs(logs::Args),
    /// Reserve a task for an agent or a host.
    Assign {
        /// The task's UUID or key.
        task: String,
        /// An agent, a host (`host_id`) or one CLI on a host (`host_id/agent_type`).
        agent_id: String,
        /// Only if this is how the target works: `http_pull` for agents, `ssh_cli` for hosts.
        #[arg(long)]
        mode: Option<ExecutionMode>,
        /// Even if the target lacks a capability that the task requires.
        #[arg(long)]
        force: bool,
    },
    /// Put a failed, lost or cancelled task back into the queue.
    Retry {
        /// The task's UUID or key.
        task: String,
        /// How it is to be executed this time.
        #[arg(long)]
        mode: Option<ExecutionMode>,
    },
    /// Call a task off; a run is stopped.
    Cancel {
        /// The task's UUID or key.
        task: String,
        /// Why; kept in the task's events.
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only tasks in this status.
    #[arg(long)]
    status: Option<Status>,
    /// Only tasks executed this way.
    #[arg(long)]
    mode: Option<ExecutionMode>,
    /// Only tasks that require this capability, e.g. `agent:code`.
    #[arg(long)]
    capability: Option<String>,
    /// Only tasks of this agent.
    #[arg(long)]
    agent: Option<String>,
    /// Only tasks in which this text occurs.
    #[arg(long = "q")]
    text: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Runs `task`.
pub(super) async fn run(args: Args) -> Outcome {
    let client = Client::from_env()?;
    let path = |task: &str, act: &str| format!("{}/{act}", path_of(task));
    match args.command {
        Command::Submit(submit) => submit::run(&client, submit, args.json).await,
        Command::List(filter) => list_tasks(&client, filter, args.json).await,
        Command::Show { task } => {
            let task: Value = client.get(&path_of(&task), &[]).await?;
            answer(&task, args.json, show::text)
        }
        Command::Logs(logs) => logs::run(&client, &logs, args.json).await,
        Command::Assign { task, agent_id, mode, force } => {
            let body = json!({"agent_id": agent_id, "execution_mode": mode, "force": force});
            let task = client.post(&path(&task, "assign"), &body).await?;
            answer(&task, args.json, |t| format!("{} is reserved for {agent_id}\n", name(t)))
        }
        Command::Retry { task, mode } => {
            let body = json!({"execution_mode": mode});
            let task = client.post(&path(&task, "retry"), &body).await?;
            answer(&task, args.json, |t| format!("{} is {} again\n", name(t), cell(t, "status")))
        }
        Command::Cancel { task, reason } => {
            let task = client.post(&path(&task, "cancel"), &json!({"reason": reason})).await?;
            answer(&task, args.json, |t| format!("{} is {}\n", name(t), cell(t, "status")))
        }
    }
}

async fn list_tasks(client: &Client, filter: ListArgs, as_json: bool) -> Outcome {
    let mut query = Vec::new();
    query.extend(filter.status.map(|s| ("status", s.to_string())));
    query.extend(filter.mode.map(|m| ("execution_mode", m.to_string())));
    query.extend(filter.capability.map(|c| ("capability", c)));
    query.extend(filter.agent.map(|a| ("agent_id", a)));
    query.extend(filter.text.map(|t| ("q", t)));
    let wanted = usize::try_from(filter.limit).unwrap_or(usize::MAX);
    let tasks = list::fetch(client, "/api/v1/tasks", query, wanted).await?;
    answer(&tasks, as_json, |tasks| {
        let row = |t: &Value| {
            let holder =
                if t["assigned_host"].is_null() { "assigned_agent_id" } else { "assigned_host" };
            [
                cell(t, "key"),
                cell(t, "status"),
                cell(t, "execution_mode"),
                cell(t, "priority"),
                cell(t, "attempt"),
                cell(t, holder),
                cell(t, "waiting_reason"),
                cell(t, "title"),
            ]
        };
        let headings =
            ["KEY", "STATUS", "MODE", "PRIORITY", "ATTEMPT", "HOLDER", "WAITS FOR", "TITLE"];
        let rows: Vec<_> = list::items(tasks).iter().map(row).collect();
        let mut text = table(headings, &rows);
        if !tasks["next_cursor"].is_null() {
            text.push_str("There are more; see --limit.\n");
        }
        text
    })
}

/// Prints an answer: as JSON, or as the text that `text` makes of it. Either way it cannot steer the terminal.
fn answer(value: &Value, as_json: bool, text: impl FnOnce(&Value) -> String) -> Outcome {
    let text = if as_json { json_text(value) + "\n" } else { text(value) };
    Ok(print(&super::terminal::printable(&text))?)
}

/// `/api/v1/tasks/{id}`
fn path_of(task: &str) -> String {
    format!("/api/v1/tasks/{}", segment(task))
}

/// How a task is called in a sentence.
fn name(task: &Value) -> String {
    super::terminal::one_line(&cell(task, "key"))
}
