//! `agent-fleet bench`: how fast the coordinator is, beside what raw SQL clients reach on the same database in the same
//! run. One scenario a file; `docs/performance.md` tells the method.
//!
//! By itself it starts everything: a PostgreSQL with its default durability, and coordinators that are processes of this
//! very program. With `--url` it loads coordinators that somebody else runs, over HTTP alone.

mod agent;
mod backlog;
mod batch;
mod cycle;
mod database;
mod enqueue;
mod floor;
mod held_snapshot;
mod http;
mod idle;
mod load;
mod memory;
mod progress;
mod replica;
mod report;
mod soak;
mod stage;
mod stuck;
mod usage;
mod views;
mod wake;
mod webhook;

use anyhow::anyhow;
use clap::ValueEnum as _;
use serde_json::{Value, json};

use self::{http::Address, report::Report, stage::Stage};
use super::{
    Failure, Outcome,
    dev::postgres::MEASURED,
    terminal::{self, print},
};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to measure, in this order; `all` leaves out what a coordinator that is not the bench's own does not allow.
    #[arg(value_enum, default_value = "all")]
    scenarios: Vec<Scenario>,
    /// Only a few tasks each: proves that every scenario runs, measures nothing.
    #[arg(long)]
    quick: bool,
    /// How often each figure is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Load this coordinator instead of the bench's own; again for each further replica. `AGENT_FLEET_TOKEN` holds the
    /// token of an admin.
    #[arg(long, value_name = "URL")]
    url: Vec<String>,
    /// Really load a coordinator that is not the bench's own.
    #[arg(long)]
    yes: bool,
    /// Fail when a figure is not what it has to be.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// All of them.
    All,
    /// Agents that take one task at a time.
    Cycle,
    /// Agents that take 50 tasks in one call.
    Batch,
    /// How soon an idle agent has a new task.
    Wake,
    /// Tasks created in arrays of 500.
    Enqueue,
    /// Signed deliveries of a forge.
    Webhook,
    /// Claims behind 1,000,000 tasks that the caller cannot take.
    Backlog,
    /// What 1,000 waiting agents cost.
    Idle,
    /// 500,000 tasks through.
    Soak,
    /// A transaction that is left open for 3 minutes.
    HeldSnapshot,
    /// 2,000 stuck clients.
    Stuck,
    /// The DBA's views on 1,000,000 tasks.
    Views,
}

const ALL: &[Scenario] = &[
    Scenario::Cycle,
    Scenario::Batch,
    Scenario::Wake,
    Scenario::Enqueue,
    Scenario::Webhook,
    Scenario::Backlog,
    Scenario::Idle,
    Scenario::Soak,
    Scenario::HeldSnapshot,
    Scenario::Stuck,
    Scenario::Views,
];
/// Those that need nothing but HTTP.
const FOREIGN: &[Scenario] =
    &[Scenario::Cycle, Scenario::Batch, Scenario::Wake, Scenario::Enqueue, Scenario::Stuck];
/// Files that this process may open: a connection for each client of the largest scenario, and then some.
const FILES: u64 = 4_096;

/// Runs `bench`.
pub(super) async fn run(args: Args) -> Outcome {
    if !args.url.is_empty() && !args.yes {
        return Err(Failure::Usage(anyhow!(
            "this would load {}, which is not the bench's own: thousands of tasks and hundreds of agents; say --yes if \
             that is wanted",
            args.url.join(" and ")
        )));
    }
    let can = if args.url.is_empty() { ALL } else { FOREIGN };
    let scenarios = if args.scenarios.contains(&Scenario::All) { can } else { &args.scenarios };
    if let Some(scenario) = scenarios.iter().find(|scenario| !can.contains(scenario)) {
        let name = scenario.to_possible_value();
        return Err(Failure::Usage(anyhow!(
            "{} needs a database or a secret of the bench's own: leave it out, or leave --url out",
            name.as_ref().map_or("this scenario", |name| name.get_name())
        )));
    }
    let addresses = args.url.iter().map(|url| Address::parse(url)).collect::<Result<Vec<_>, _>>();
    let addresses = addresses.map_err(Failure::Usage)?;
    let rounds = if args.quick { 1 } else { usize::from(args.rounds) };
    let stage = if args.url.is_empty() {
        Stage::own(args.quick, rounds).await?
    } else {
        let token = std::env::var("AGENT_FLEET_TOKEN").ok().filter(|token| !token.is_empty());
        Stage::foreign(args.quick, rounds, &args.url, addresses, token).await?
    };
    allow_files();
    let mut report = Report::default();
    let measured = tokio::select! {
        measured = measure(scenarios, &stage, &mut report) => measured,
        signal = crate::shutdown::signal() => match signal {
            Ok(signal) => Err(anyhow!("stopped by {signal}; what it had made has been cleared up")),
            Err(error) => Err(error.into()),
        },
    };
    let conditions = conditions(&stage);
    let closed = stage.close().await;
    // What was measured before something failed took its time, too.
    if measured.is_ok() || !report.is_empty() {
        if args.json {
            print(&format!("{}\n", terminal::json(&report.to_json(&conditions))))?;
        } else {
            print(&format!("{}\n{}", report.to_table(), describe(&conditions)))?;
        }
    }
    measured?;
    closed?;
    let misses = report.misses();
    if args.check && !misses.is_empty() {
        return Err(Failure::Failed(anyhow!("not what it has to be: {}", misses.join("; "))));
    }
    Ok(())
}

async fn measure(scenarios: &[Scenario], stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    for scenario in scenarios {
        match scenario {
            Scenario::All => {}
            Scenario::Cycle => cycle::run(stage, report).await?,
            Scenario::Batch => batch::run(stage, report).await?,
            Scenario::Wake => wake::run(stage, report).await?,
            Scenario::Enqueue => enqueue::run(stage, report).await?,
            Scenario::Webhook => webhook::run(stage, report).await?,
            Scenario::Backlog => backlog::run(stage, report).await?,
            Scenario::Idle => idle::run(stage, report).await?,
            Scenario::Soak => soak::run(stage, report).await?,
            Scenario::HeldSnapshot => held_snapshot::run(stage, report).await?,
            Scenario::Stuck => stuck::run(stage, report).await?,
            Scenario::Views => views::run(stage, report).await?,
        }
    }
    Ok(())
}

/// Lets this process open as many files as it needs, as far as the system lets it; a connection that cannot be opened
/// says so.
fn allow_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|files| files < FILES) {
        limit.current = Some(limit.maximum.map_or(FILES, |most| most.min(FILES)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Under which conditions it was measured.
fn conditions(stage: &Stage) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "rounds": stage.rounds,
        "quick": stage.quick,
        "coordinators": if stage.cluster().is_some() { "own" } else { "somebody else's" },
        "postgresql": stage.cluster().map(|_| format!("its defaults (fsync and synchronous_commit on) and {}", MEASURED.trim().replace('\n', ", "))),
    })
}

fn describe(conditions: &Value) -> String {
    let Value::Object(conditions) = conditions else { return String::new() };
    let said = conditions.iter().filter(|(_, value)| !value.is_null());
    said.map(|(name, value)| {
        format!("{name}: {}\n", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    })
    .collect()
}
