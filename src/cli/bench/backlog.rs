//! `backlog`: how long a claim takes behind 1,000,000 tasks in 200 lanes that the caller cannot take; against the same
//! on an empty queue. One agent, so that it is the claim that is measured and not the queue before it.

use std::time::Instant;

use anyhow::Context as _;
use serde::de::IgnoredAny;

use super::{
    agent::Agent,
    database::Database,
    load,
    report::{Bound, Figure, Report, quantile},
    stage::{Fleet, Stage},
};

const NAME: &str = "backlog";
const LANES: usize = 200;
/// Tasks that one statement makes.
const PIECE: usize = 100_000;
const TIMES_EMPTY: f64 = 1.3;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (tasks, claims) = if stage.quick { (2_000, 20) } else { (1_000_000, 4_000) };
    let empty = stage.fleet(NAME).await?;
    let full = stage.fleet(NAME).await?;
    let database = full.own_database()?;
    make(stage, database, tasks).await?;
    let mut parts: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..stage.rounds {
        for (fleet, part) in [&empty, &full].into_iter().zip(&mut parts) {
            let took = measure(fleet, claims).await?;
            part[0].push(quantile(&took, 0.5));
            part[1].push(quantile(&took, 0.99));
        }
    }
    empty.close().await?;
    full.close().await?;
    let [[empty_50, empty_99], [full_50, full_99]] = &parts;
    for (part, empty, full) in [("p50", empty_50, full_50), ("p99", empty_99, full_99)] {
        report.add(Figure::new(NAME, format!("{part} of a claim, empty queue"), empty, "ms"));
        let what = format!("{part} of a claim behind {tasks} tasks in {LANES} lanes");
        let figure = Figure::new(NAME, what, full, "ms");
        report.add(figure.against("empty queue", empty).wanted(Bound::AtMost(TIMES_EMPTY)));
    }
    Ok(())
}

/// Makes the tasks that nobody takes, and lets the database know them.
pub(super) async fn make(
    stage: &Stage,
    database: &Database<'_>,
    tasks: usize,
) -> anyhow::Result<()> {
    let what = format!("making a backlog of {tasks} tasks");
    let lanes = LANES.to_string();
    let mut made = 0;
    while made < tasks {
        let piece = PIECE.min(tasks - made).to_string();
        let variables = [("lanes", lanes.as_str()), ("tasks", piece.as_str())];
        database.run::<IgnoredAny>(include_str!("sql/backlog.sql"), &variables).await?;
        made += PIECE;
        stage.progress.at(&what, made, tasks);
    }
    database.run::<IgnoredAny>(include_str!("sql/vacuum.sql"), &[]).await.map(drop)
}

/// Milliseconds of each claim, from the request to the reply.
async fn measure(fleet: &Fleet<'_>, claims: usize) -> anyhow::Result<Vec<f64>> {
    let mut agents = load::register(fleet, 1, 1).await?;
    let agent: &mut Agent = agents.first_mut().context("no agent")?;
    load::create_tasks(fleet, claims).await?;
    load::settle(fleet).await?;
    fleet.stage().progress.begin("claiming");
    let mut took = Vec::with_capacity(claims);
    for _ in 0..claims {
        let asked = Instant::now();
        let claim = agent.dequeue(0).await?.context("there was no task although many wait")?;
        took.push(asked.elapsed().as_secs_f64() * 1e3);
        agent.complete(&claim).await?;
    }
    load::deregister(agents).await?;
    Ok(took)
}
