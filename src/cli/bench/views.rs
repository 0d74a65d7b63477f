//! `views`: how long each of the DBA's views and functions takes on 1,000,000 tasks: nearly all of them finished, or all
//! waiting. Views are read as `docs/dba.md` says; what else one might ask of `waiting_tasks` stands beside that.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;

use super::{
    backlog,
    report::{Bound, Figure, Report},
    stage::Stage,
};

const NAME: &str = "views";
/// Each figure is the median of at least so many.
const ROUNDS: usize = 5;
/// These look at history or at the disk, and may take this long.
const SLOW: [&str; 4] = ["throughput", "latency", "failures", "storage"];
const SLOW_MILLISECONDS: f64 = 500.0;
/// These read every waiting task or walk over all tasks: they take as long as there are.
const UNBOUNDED: [&str; 4] = [
    "waiting_tasks, the 100 oldest",
    "waiting_tasks, all rows",
    "waiting_tasks, all rows, jit off",
    "fleet.purge(), nothing is that old",
];

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let all = if stage.quick { 1_000 } else { 1_000_000 };
    let live = all / 50;
    let rounds = if stage.quick { 1 } else { stage.rounds.max(ROUNDS) };
    for (backlog, what, most) in
        [(live, "20,000 live of 1,000,000 tasks", 50.0), (all, "1,000,000 waiting", 300.0)]
    {
        let fleet = stage.fleet(NAME).await?;
        let database = fleet.own_database()?;
        stage.progress.begin(&format!("making tasks: {what}"));
        let finished = (all - backlog).to_string();
        let variables = [("tasks", finished.as_str())];
        database.run::<IgnoredAny>(include_str!("sql/history.sql"), &variables).await?;
        backlog::make(stage, database, backlog).await?;
        let under_way = (backlog < all).to_string();
        let variables = [("under_way", under_way.as_str())];
        database.run::<IgnoredAny>(include_str!("sql/workers.sql"), &variables).await?;
        database.run::<IgnoredAny>(include_str!("sql/vacuum.sql"), &[]).await?;
        let mut took: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for round in 0..rounds {
            stage.progress.at(&format!("reading views: {what}"), round, rounds);
            for script in [include_str!("sql/views.sql"), include_str!("sql/functions.sql")] {
                let figures: BTreeMap<String, f64> = database.run(script, &[]).await?;
                for (read, milliseconds) in figures {
                    took.entry(read).or_default().push(milliseconds);
                }
            }
        }
        fleet.close().await?;
        for (read, figures) in &took {
            let figure = Figure::new(NAME, format!("{read}; {what}"), figures, "ms");
            report.add(match read.as_str() {
                read if UNBOUNDED.contains(&read) => figure,
                read if SLOW.contains(&read) => figure.wanted(Bound::AtMost(SLOW_MILLISECONDS)),
                _ => figure.wanted(Bound::AtMost(most)),
            });
        }
    }
    Ok(())
}
