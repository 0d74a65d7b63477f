//! `soak`: 500,000 tasks through, created and done at once. What a task costs in commits and in the write-ahead log, and
//! whether anything grows or slows on the way.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{
    database::Activity,
    load::{self, ARRAY, Crew, Tally},
    report::{Bound, Figure, Report},
    stage::Stage,
};

const NAME: &str = "soak";
const AGENTS: usize = 64;
const COMMITS: f64 = 0.2;
const WAL: f64 = 4096.0;
const LAST_TO_FIRST: f64 = 0.95;

/// Measured once, however many rounds are asked for: it is long enough to be its own repetition.
pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let tasks = if stage.quick { 2 * ARRAY } else { 500_000 };
    let fleet = stage.fleet(NAME).await?;
    let database = fleet.database.as_ref().context(
        "soak: tables and logs are measured in the database, so it must be the bench's own; leave this scenario out",
    )?;
    // What is new in a process and in a table is not measured.
    let warm = if stage.quick { 100 } else { 20_000 };
    let agents = load::register(&fleet, AGENTS, 1).await?;
    load::create_tasks(&fleet, warm).await?;
    load::drain(&fleet, agents, 1, warm).await?;

    load::settle(&fleet).await?;
    let agents = load::register(&fleet, AGENTS, 1).await?;
    let began = Activity::read(database).await?;
    let tally = Arc::new(Tally::new(tasks, (0..=10).map(|tenth| (tasks * tenth / 10).max(1))));
    let crew = Crew::set_to_work(agents, 1, &tally);
    let feeding = load::feed(
        fleet.admin(0).await?,
        fleet.capability.clone(),
        Arc::clone(&tally),
        tasks,
        CancellationToken::new(),
    );
    let at_a_tenth = async {
        while tally.done() < tasks / 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Activity::read(database).await
    };
    let ((), at_a_tenth, ()) = tokio::try_join!(feeding, at_a_tenth, crew.finish(&fleet))?;
    let ended = Activity::read(database).await?;
    load::reconcile(&fleet, warm + tasks).await?;
    fleet.close().await?;

    let each = tasks as f64;
    let rates = tally.rates();
    let (first, last) = rates.first().zip(rates.last()).context("too few tasks to measure")?;
    let mut figure = |what: &str, value: f64, unit, bound| {
        let figure = Figure::new(NAME, what, &[value], unit);
        report.add(match bound {
            Some(bound) => figure.wanted(bound),
            None => figure,
        });
    };
    let least = Some(Bound::AtMost(COMMITS));
    figure("commits a task", (ended.commits - began.commits) / each, "", least);
    figure("WAL a task", (ended.wal - began.wal) / each, "bytes", Some(Bound::AtMost(WAL)));
    figure("growth of tables a task", (ended.tables - began.tables) / each, "bytes", None);
    figure("growth of indexes a task", (ended.indexes - began.indexes) / each, "bytes", None);
    for (tenth, rate) in (1..).zip(&rates) {
        figure(&format!("tenth {tenth}"), *rate, "cycles/s", None);
    }
    let what = "last tenth";
    let figure = Figure::new(NAME, what, &[*last], "cycles/s").against("first tenth", &[*first]);
    report.add(figure.wanted(Bound::AtLeast(LAST_TO_FIRST)));
    let what = "ready indexes at the end";
    let figure = Figure::new(NAME, what, &[ended.ready_indexes / 1024.0], "KiB");
    let figure = figure.against("at 10 %", &[at_a_tenth.ready_indexes / 1024.0]);
    report.add(figure.wanted(Bound::AtMost(1.0)));
    Ok(())
}
