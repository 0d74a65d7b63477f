//! `agent-fleet doctor`: looks at everything that a coordinator depends on, and says for each what is wrong and how to mend
//! it. It reads, and writes nothing but the probe's own file on hosts.

mod configuration;
mod database;
mod hosts;

use std::path::Path;

use serde::Serialize;

use super::{
    Failure, Outcome, load_config,
    terminal::{one_line, print},
};
use crate::{config::Config, store::Store};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON instead of lines.
    #[arg(long)]
    json: bool,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Work goes on; it should be looked at.
    Warn,
    /// A coordinator, or a host, cannot work.
    Fail,
}

/// What was found of one thing.
#[derive(Debug, Serialize)]
struct Finding {
    /// `configuration`, `database`, `host` or `forge`.
    area: &'static str,
    /// What was looked at; of hosts, with the host's id.
    name: String,
    state: State,
    /// What is the case.
    says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// The findings of one area.
#[derive(Debug)]
struct Findings {
    area: &'static str,
    all: Vec<Finding>,
}

impl Findings {
    fn new(area: &'static str) -> Self {
        Self { area, all: Vec::new() }
    }

    fn ok(&mut self, name: &str, says: impl Into<String>) {
        self.add(name, State::Ok, says.into(), None);
    }

    fn warn(&mut self, name: &str, says: impl Into<String>, mend: &str) {
        self.add(name, State::Warn, says.into(), Some(mend.to_owned()));
    }

    fn fail(&mut self, name: &str, says: impl Into<String>, mend: &str) {
        self.add(name, State::Fail, says.into(), Some(mend.to_owned()));
    }

    fn add(&mut self, name: &str, state: State, says: String, mend: Option<String>) {
        self.all.push(Finding { area: self.area, name: name.to_owned(), state, says, mend });
    }
}

/// Runs `doctor`: exit code 1 when anything fails.
pub(super) async fn run(args: &Args, path: Option<&Path>) -> Outcome {
    let mut all = Vec::new();
    match load_config(path) {
        Err(Failure::Usage(error) | Failure::Failed(error)) => {
            let mut findings = Findings::new("configuration");
            let mend =
                "mend the file or the environment; `agent-fleet config default` shows every key";
            findings.fail("file and environment", format!("{error:#}"), mend);
            all.append(&mut findings.all);
        }
        Ok(config) => all = look(&config).await,
    }
    let failed = all.iter().filter(|finding| finding.state == State::Fail).count();
    if args.json {
        let report = serde_json::json!({"ok": failed == 0, "findings": all});
        print(&(super::terminal::json(&report) + "\n"))?;
    } else {
        print(&all.iter().map(line).collect::<String>())?;
    }
    match failed {
        0 => Ok(()),
        1 => Err(anyhow::anyhow!("one thing fails").into()),
        n => Err(anyhow::anyhow!("{n} things fail").into()),
    }
}

async fn look(config: &Config) -> Vec<Finding> {
    let mut all = configuration::look(config);
    let store = match Store::new(&config.database, &config.server.replica_id) {
        Ok(store) => Some(store),
        Err(error) => {
            let mut findings = Findings::new("database");
            let says = crate::telemetry::error_chain(&error);
            findings.fail(
                "address",
                says,
                "set DATABASE_URL (database.url): postgres://user:password@host/dbname",
            );
            all.append(&mut findings.all);
            None
        }
    };
    let mut fleet_id = None;
    if let Some(store) = &store {
        all.append(&mut database::look(store, config).await);
        fleet_id = store.fleet_id().await.ok();
    }
    let fleet = store.as_ref().zip(fleet_id);
    all.append(&mut hosts::look(config, fleet).await);
    all
}

fn line(finding: &Finding) -> String {
    let state = match finding.state {
        State::Ok => "ok  ",
        State::Warn => "warn",
        State::Fail => "FAIL",
    };
    let mut text =
        format!("{state}  {} {}: {}\n", finding.area, finding.name, one_line(&finding.says));
    if let Some(mend) = &finding.mend {
        text.push_str(&format!("      -> {}\n", one_line(mend)));
    }
    text
}
