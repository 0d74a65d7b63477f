//! `views`: how long each of the DBA's views takes on 1,000,000 tasks: nearly all of them finished, or all waiting.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::de::IgnoredAny;

use super::{
    backlog,
    report::{Bound, Figure, Report},
    stage::Stage,
};

const NAME: &str = "views";
/// These look at history or at the disk, and may take this long.
const SLOW: [&str; 4] = ["throughput", "latency", "failures", "storage"];
const SLOW_MILLISECONDS: f64 = 500.0;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let all = if stage.quick { 1_000 } else { 1_000_000 };
    let live = all / 50;
    for (waiting, what, most) in
        [(live, "20,000 live of 1,000,000 tasks", 50.0), (all, "1,000,000 waiting", 300.0)]
    {
        let fleet = stage.fleet(NAME).await?;
        let database = fleet.database.as_ref().context(
            "views: they are read in the database, so it must be the bench's own; leave this scenario out",
        )?;
        stage.progress.begin(&format!("making tasks: {what}"));
        let finished = (all - waiting).to_string();
        let variables = [("tasks", finished.as_str())];
        database.run::<IgnoredAny>(include_str!("sql/history.sql"), &variables).await?;
        backlog::make(stage, database, waiting).await?;
        let mut took: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for _ in 0..stage.rounds {
            stage.progress.begin(&format!("reading views: {what}"));
            let round: BTreeMap<String, f64> =
                database.run(include_str!("sql/views.sql"), &[]).await?;
            for (view, milliseconds) in round {
                took.entry(view).or_default().push(milliseconds);
            }
        }
        fleet.close().await?;
        for (view, rounds) in &took {
            let most = if SLOW.contains(&view.as_str()) { SLOW_MILLISECONDS } else { most };
            let figure = Figure::new(NAME, format!("{view}, {what}"), rounds, "ms");
            report.add(figure.wanted(Bound::AtMost(most)));
        }
    }
    Ok(())
}
