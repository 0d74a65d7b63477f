//! `agent-fleet task submit`: a task from the command line.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Client, Outcome, cell, name, path_of};
use crate::{
    cli::{
        Failure,
        terminal::{json as json_text, one_line, print},
    },
    model::{ExecutionMode, Priority, Status},
};

/// How often `--wait` looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How often in a row the coordinator may be out of reach meanwhile.
const TRIES: u32 = 60;

/// Arguments of `task submit`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What is to be done, in one line.
    #[arg(long)]
    title: String,
    /// What is to be done, in full.
    #[arg(long, conflicts_with = "body_file")]
    body: Option<String>,
    /// The same from a file; `-` reads stdin.
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    /// A label; those that begin with `agent:` are requirements. May be repeated.
    #[arg(long = "label")]
    labels: Vec<String>,
    /// `low`, `normal`, `high` or `urgent`.
    #[arg(long)]
    priority: Option<Priority>,
    /// Names the task; submitting the same key and content again creates nothing.
    #[arg(long)]
    key: Option<String>,
    /// `undecided`, `ssh_cli` or `http_pull`.
    #[arg(long)]
    mode: Option<ExecutionMode>,
    /// Not before this time, e.g. `2026-12-01T08:00:00Z`.
    #[arg(long)]
    run_at: Option<Timestamp>,
    /// Time limit of an attempt, e.g. `30m`.
    #[arg(long, value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How often it is tried again.
    #[arg(long)]
    max_retries: Option<u32>,
    /// The repository that it is about: `org/repo`, or the address to clone it from.
    #[arg(long)]
    repo: Option<String>,
    /// Where it is discussed.
    #[arg(long)]
    issue_url: Option<String>,
    /// Wait until it ends or its pull request waits for review; failure is exit code 1.
    #[arg(long)]
    wait: bool,
}

/// Runs `task submit`.
pub(super) async fn run(client: &Client, args: Args, as_json: bool) -> Outcome {
    let wait = args.wait;
    let mut task: Value = client.post("/api/v1/tasks", &body_of(args)?).await?;
    if wait {
        task = follow(client, task).await?;
    }
    if as_json {
        print(&(json_text(&task) + "\n"))?;
    } else {
        let line = ["task_id", "key", "status"].map(|field| one_line(&cell(&task, field)));
        print(&(line.join("  ") + "\n"))?;
    }
    let status = cell(&task, "status").parse::<Status>().ok();
    if wait && status.is_some_and(|s| s.is_terminal() && s != Status::Completed) {
        let why = one_line(&cell(&task, "error"));
        return Err(Failure::Failed(anyhow::anyhow!(
            "{} is {}: {why}",
            name(&task),
            cell(&task, "status")
        )));
    }
    Ok(())
}

/// The request's body; what was not given is left to the coordinator.
fn body_of(args: Args) -> Result<Value, Failure> {
    let mut body = Map::new();
    let mut set = |field: &str, value: Option<Value>| {
        body.extend(value.map(|v| (field.to_owned(), v)));
    };
    set("title", Some(args.title.into()));
    set("source", Some("cli".into()));
    set("body", body_text(args.body, args.body_file)?.map(Value::from));
    set("labels", (!args.labels.is_empty()).then(|| args.labels.into()));
    set("priority", args.priority.map(|p| p.as_str().into()));
    set("key", args.key.map(Value::from));
    set("execution_mode", args.mode.map(|m| m.as_str().into()));
    set("run_at", args.run_at.map(|t| t.to_string().into()));
    set("timeout_secs", args.timeout.map(|t| t.as_secs().into()));
    set("max_retries", args.max_retries.map(Value::from));
    set("repo", args.repo.as_deref().map(repo_of));
    set("issue_url", args.issue_url.map(Value::from));
    Ok(Value::Object(body))
}

fn body_text(text: Option<String>, file: Option<PathBuf>) -> Result<Option<String>, Failure> {
    let Some(file) = file else { return Ok(text) };
    let read = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(&file)
    };
    let read = read.with_context(|| format!("cannot read the body from {}", file.display()));
    read.map(Some).map_err(Failure::Usage)
}

/// `org/repo`, or a clone address whose last two segments are that.
fn repo_of(given: &str) -> Value {
    let is_ssh = given.starts_with("ssh://") || (given.contains('@') && !given.contains("://"));
    if !is_ssh && !given.contains("://") {
        return json!({"full_name": given});
    }
    let path = given.trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let mut segments: Vec<&str> = path.rsplit(['/', ':']).take(2).collect();
    segments.reverse();
    let address = if is_ssh { "ssh_url" } else { "clone_url" };
    json!({"full_name": segments.join("/"), address: given})
}

/// Looks at the task until nothing more happens to it by itself; its ways are told on stderr.
async fn follow(client: &Client, mut task: Value) -> Result<Value, Failure> {
    let path = path_of(&cell(&task, "task_id"));
    let mut told = String::new();
    let mut failures = 0;
    loop {
        let status = cell(&task, "status");
        if status != told {
            eprintln!("{} is {}", name(&task), one_line(&status));
            told = status;
        }
        let known = told.parse::<Status>().ok();
        if known.is_some_and(|s| s.is_terminal() || s == Status::ReviewPending) {
            return Ok(task);
        }
        tokio::time::sleep(PAUSE).await;
        match client.get(&path, &[]).await {
            Ok(now) => (task, failures) = (now, 0),
            Err(error) if error.is_passing() && failures < TRIES => failures += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_by_name_or_address() {
        assert_eq!(repo_of("org/repo"), json!({"full_name": "org/repo"}));
        let https = "https://forge.example/org/repo.git";
        assert_eq!(repo_of(https), json!({"full_name": "org/repo", "clone_url": https}));
        let scp = "git@forge.example:org/repo.git";
        assert_eq!(repo_of(scp), json!({"full_name": "org/repo", "ssh_url": scp}));
        let ssh = "ssh://git@forge.example/org/repo";
        assert_eq!(repo_of(ssh), json!({"full_name": "org/repo", "ssh_url": ssh}));
    }
}
