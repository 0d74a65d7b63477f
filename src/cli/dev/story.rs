//! The life of a few tasks, told line by line as it happens.

use std::{collections::HashSet, io, time::Duration};

use serde_json::Value;

use crate::{
    cli::{
        client::{Client, ClientError, segment},
        terminal::{cell, one_line, print},
    },
    model::Status,
};

/// How often to look.
const PAUSE: Duration = Duration::from_millis(200);

/// What was told so far.
#[derive(Debug, Default)]
struct Told {
    events: HashSet<i64>,
    /// Bytes of output.
    offset: u64,
}

/// Why the story broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoryError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

/// Tells events and output of these tasks until all have ended. True when all were completed.
pub(super) async fn tell(client: &Client, keys: &[String]) -> Result<bool, StoryError> {
    let mut told: Vec<Told> = keys.iter().map(|_| Told::default()).collect();
    loop {
        let mut statuses = Vec::new();
        for (key, told) in keys.iter().zip(&mut told) {
            statuses.push(tell_one(client, key, told).await?);
        }
        if statuses.iter().all(|s| s.is_none_or(Status::is_terminal)) {
            return Ok(statuses.iter().all(|s| *s == Some(Status::Completed)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Tells what is new of one task and answers how it stands; `None` for a status of a later version.
async fn tell_one(
    client: &Client,
    key: &str,
    told: &mut Told,
) -> Result<Option<Status>, StoryError> {
    let path = format!("/api/v1/tasks/{}", segment(key));
    let task: Value = client.get(&path, &[]).await?;
    let output: Value =
        client.get(&format!("{path}/logs"), &[("offset", told.offset.to_string())]).await?;
    for item in crate::cli::list::items(&output) {
        for line in item["data"].as_str().unwrap_or_default().lines() {
            say(key, &format!("  | {line}"))?;
        }
    }
    told.offset = output["next_offset"].as_u64().unwrap_or(told.offset);
    let mut events = task["events"].as_array().cloned().unwrap_or_default();
    events.sort_by_key(|event| event["event_id"].as_i64());
    for event in events {
        if event["event_id"].as_i64().is_some_and(|id| told.events.insert(id)) {
            say(key, &sentence(&event))?;
        }
    }
    Ok(cell(&task, "status").parse().ok())
}

/// `assigned → running: started by agent:demo-agent`
fn sentence(event: &Value) -> String {
    let (from, to) = (cell(event, "from_status"), cell(event, "to_status"));
    let way = match (from.is_empty(), to.is_empty()) {
        (_, true) => String::new(),
        (true, false) => format!("{to}: "),
        (false, false) => format!("{from} → {to}: "),
    };
    format!("{way}{} by {}", cell(event, "type"), cell(event, "actor"))
}

fn say(key: &str, text: &str) -> Result<(), StoryError> {
    print(&format!("  {}  {}\n", one_line(key), harmless_line(text))).map_err(StoryError::Stdout)
}

/// On one line, but with its indentation.
fn harmless_line(text: &str) -> String {
    crate::cli::terminal::printable(text).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sentences() {
        let event = json!({"type": "started", "actor": "agent:a", "from_status": "assigned", "to_status": "running"});
        assert_eq!(sentence(&event), "assigned → running: started by agent:a");
        let event = json!({"type": "created", "actor": "forgejo:x", "from_status": null, "to_status": "created"});
        assert_eq!(sentence(&event), "created: created by forgejo:x");
        assert_eq!(sentence(&json!({"type": "updated", "actor": "x"})), "updated by x");
    }
}
