//! `idle`: 1,000 agents that wait and find nothing. What that costs the database, and the memory of the replica.
//!
//! All transactions of the database count but heartbeats and autovacuum's looks.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    agent::{Agent, POLL},
    database::Activity,
    http::Connection,
    load,
    report::{Bound, Figure, Report},
    stage::Stage,
};

const NAME: &str = "idle";
const TRANSACTIONS: f64 = 5.0;
const MEGABYTES: f64 = 100.0;
/// The statements that are heartbeats, each a transaction: of agents, with a list or by their calls, and of the replica.
const HEARTBEATS: [&str; 3] = ["beat_agents", "touch_sessions", "beat_replica"];

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    // A window as long as a poll: each agent asks anew exactly once in it. The polls begin at any time of it.
    let poll = if stage.quick { 1 } else { POLL };
    let window = Duration::from_secs(u64::from(poll));
    let fleet = stage.fleet(NAME).await?;
    let database = fleet.own_database()?;
    let replica = fleet.replicas.first().context("no replica")?;
    let agents = load::register(&fleet, if stage.quick { 20 } else { 1_000 }, 1).await?;
    let what = format!("{} agents wait", agents.len());
    let count = u32::try_from(agents.len())?;
    let stop = CancellationToken::new();
    let mut waiting = JoinSet::new();
    for (number, agent) in (0..).zip(agents) {
        waiting.spawn(wait(agent, poll, window * number / count, stop.clone()));
    }
    tokio::time::sleep(window).await;
    let (mut transactions, mut heartbeats, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let mut admin = fleet.admin(0).await?;
    for round in 0..stage.rounds {
        stage.progress.at(&what, round, stage.rounds);
        let beaten = beats(&mut admin).await?;
        let before = Activity::read(database).await?;
        tokio::select! {
            () = tokio::time::sleep(window) => {}
            ended = waiting.join_next() => { ended.context("nobody waits")???; }
        }
        let after = Activity::read(database).await?;
        let beaten = beats(&mut admin).await? - beaten;
        let all = after.transactions - before.transactions;
        let looks = after.looks - before.looks;
        transactions.push((all - looks - beaten) / window.as_secs_f64());
        heartbeats.push(beaten / window.as_secs_f64());
        memory.push(replica.resident_megabytes()?);
    }
    stop.cancel();
    while let Some(ended) = waiting.join_next().await {
        ended??;
    }
    fleet.close().await?;
    let bound = Bound::AtMost(TRANSACTIONS);
    let figure = Figure::new(NAME, format!("{what}: transactions"), &transactions, "/s");
    report.add(figure.wanted(bound));
    report.add(Figure::new(NAME, format!("{what}: heartbeats besides"), &heartbeats, "/s"));
    let figure = Figure::new(NAME, format!("{what}: the replica's resident memory"), &memory, "MB");
    report.add(figure.wanted(Bound::AtMost(MEGABYTES)));
    Ok(())
}

/// How many heartbeats the coordinator has written so far, by its own metrics.
async fn beats(connection: &mut Connection) -> anyhow::Result<f64> {
    let reply = connection.call("GET", "/metrics", &[], b"").await?;
    ensure!(reply.status == 200, "GET /metrics was answered with {}", reply.status);
    let metrics = std::str::from_utf8(reply.body)?;
    let count = |name: &&str| {
        let series = format!("agent_fleet_statement_seconds_count{{statement=\"{name}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok())
    };
    Ok(HEARTBEATS.iter().filter_map(count).sum())
}

async fn wait(
    mut agent: Agent,
    poll: u32,
    delay: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let waiting = async {
        tokio::time::sleep(delay).await;
        loop {
            let claim = agent.dequeue::<super::agent::Claim>(poll).await?;
            anyhow::ensure!(claim.is_none(), "an idle agent was given a task");
        }
    };
    tokio::select! {
        waited = waiting => waited,
        () = stop.cancelled() => Ok(()),
    }
}
