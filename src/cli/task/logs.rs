//! `agent-fleet task logs`: what a run wrote, now or as it comes.

use std::time::Duration;

use serde_json::Value;

use super::{Client, Outcome, path_of};
use crate::cli::terminal::{json_line, print, printable};

/// How long to wait for more.
const PAUSE: Duration = Duration::from_secs(1);
/// How often in a row a coordinator may be out of reach while following.
const TRIES: u32 = 30;

/// Arguments of `task logs`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The task's UUID or key.
    task: String,
    /// Go on until the run ends.
    #[arg(long, short)]
    follow: bool,
}

/// Runs `task logs`. With `--json` each chunk is one line of JSON.
pub(super) async fn run(client: &Client, args: &Args, as_json: bool) -> Outcome {
    let path = format!("{}/logs", path_of(&args.task));
    let mut query: Vec<(&str, String)> = Vec::new();
    let mut failures = 0;
    loop {
        let page: Value = match client.get(&path, &query).await {
            Ok(page) => page,
            Err(error) if args.follow && error.is_passing() && failures < TRIES => {
                failures += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        failures = 0;
        let items = crate::cli::list::items(&page);
        for item in items {
            if as_json {
                print(&(json_line(item) + "\n"))?;
            } else {
                print(&printable(item["data"].as_str().unwrap_or_default()))?;
            }
        }
        if let Some(first) = items.first() {
            // A later attempt must not be mixed in.
            let next = page["next_offset"].to_string();
            query = vec![("lease", first["lease"].to_string()), ("offset", next)];
        }
        let done = page["done"] == true;
        if items.is_empty() && (done || !args.follow) {
            return Ok(());
        }
        if items.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
