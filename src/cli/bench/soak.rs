//! `soak`: 500,000 tasks through, created and done at once. What a task costs in commits and in the write-ahead log, and
//! whether anything grows or slows on the way.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use tokio_util::sync::CancellationToken;

use super::{
    database::Activity,
    load::{self, ARRAY, Crew, LEAD, Tally},
    report::{Bound, Figure, Report},
    stage::Stage,
};

const NAME: &str = "soak";
const AGENTS: usize = 64;
const COMMITS: f64 = 0.2;
const WAL: f64 = 4096.0;
const LAST_TO_FIRST: f64 = 0.95;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let tasks = if stage.quick { 2 * ARRAY } else { 500_000 };
    let mut rounds = Vec::new();
    for _ in 0..stage.rounds {
        rounds.push(measure(stage, tasks).await?);
    }
    let each = |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let mut figure = |what: &str, values: &[f64], unit, bound| {
        let figure = Figure::new(NAME, what, values, unit);
        report.add(match bound {
            Some(bound) => figure.wanted(bound),
            None => figure,
        });
    };
    let a_task = |of: fn(&Activity) -> f64| {
        each(&|round| (of(&round.ended) - of(&round.began)) / round.tasks as f64)
    };
    figure("commits a task", &a_task(|a| a.commits), "", Some(Bound::AtMost(COMMITS)));
    figure("WAL a task", &a_task(|a| a.wal), "bytes", Some(Bound::AtMost(WAL)));
    figure("growth of tables a task", &a_task(|a| a.tables), "bytes", None);
    figure("growth of indexes a task", &a_task(|a| a.indexes), "bytes", None);
    let tenths = rounds.iter().map(|round| round.rates.len()).min().unwrap_or(0);
    for tenth in 0..tenths {
        let rates = each(&|round| round.rates[tenth]);
        figure(&format!("tenth {}", tenth + 1), &rates, "cycles/s", None);
    }
    ensure!(tenths > 0, "too few tasks to measure");
    let (first, last) = (each(&|round| round.rates[0]), each(&|round| round.rates[tenths - 1]));
    let figure = Figure::new(NAME, "last tenth", &last, "cycles/s").against("first tenth", &first);
    report.add(figure.wanted(Bound::AtLeast(LAST_TO_FIRST)));
    let ready = |of: fn(&Round) -> &Activity| each(&|round| of(round).ready_indexes / 1024.0);
    let (ended, at_a_tenth) = (ready(|round| &round.ended), ready(|round| &round.at_a_tenth));
    let figure = Figure::new(NAME, "ready indexes at the end", &ended, "KiB");
    report.add(figure.against("at 10 %", &at_a_tenth).wanted(Bound::AtMost(1.0)));
    Ok(())
}

/// What one round found.
struct Round {
    /// All that were done.
    tasks: usize,
    began: Activity,
    at_a_tenth: Activity,
    ended: Activity,
    /// Cycles a second, tenth by tenth.
    rates: Vec<f64>,
}

/// One round, on a new database.
async fn measure(stage: &Stage, tasks: usize) -> anyhow::Result<Round> {
    let fleet = stage.fleet(NAME).await?;
    let database = fleet.own_database()?;
    // What is new in a process and in a table is not measured.
    let warm = if stage.quick { 100 } else { 20_000 };
    let agents = load::register(&fleet, AGENTS, 1).await?;
    load::create_tasks(&fleet, warm).await?;
    load::drain(&fleet, agents, 1, warm).await?;

    load::settle(&fleet).await?;
    let agents = load::register(&fleet, AGENTS, 1).await?;
    let began = Activity::read(database).await?;
    // So that as many are created as done in each tenth: before the first those that wait from then on are created, and they are
    // done after the last.
    let lead = if stage.quick { 0 } else { LEAD };
    let marks = (0..=10).map(|tenth| lead + (tasks * tenth / 10).max(1));
    let (all, a_tenth) = (tasks + 2 * lead, lead + tasks / 10);
    let tally = Arc::new(Tally::new(all, marks));
    let crew = Crew::set_to_work(agents, 1, &tally);
    let feeding = load::feed(
        fleet.admin(0).await?,
        fleet.capability.clone(),
        Arc::clone(&tally),
        all,
        CancellationToken::new(),
    );
    let at_a_tenth = async {
        while tally.done() < a_tenth {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Activity::read(database).await
    };
    let ((), at_a_tenth, ()) = tokio::try_join!(feeding, at_a_tenth, crew.finish(&fleet))?;
    let ended = Activity::read(database).await?;
    load::reconcile(&fleet, warm + all).await?;
    fleet.close().await?;

    Ok(Round { tasks: all, began, at_a_tenth, ended, rates: tally.rates() })
}
