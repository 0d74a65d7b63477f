//! `batch`: agents that take 50 tasks in one call and complete them in another; against raw SQL clients that do one a
//! commit.

use super::{
    floor, load,
    report::{Bound, Figure, Report},
    stage::Stage,
};

const NAME: &str = "batch";
/// Tasks in one call.
const BATCH: usize = 50;
const AGENTS: usize = 8;
const TIMES_FLOOR: f64 = 4.0;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let fleet = stage.fleet(NAME).await?;
    let (mut floors, mut rates) = (Vec::new(), Vec::new());
    let each = if stage.quick { 20 * BATCH } else { 100_000 };
    for _ in 0..stage.rounds {
        if let Some(database) = &fleet.database {
            floors.push(floor::cycles(stage, database).await?);
        }
        load::create_tasks(&fleet, each).await?;
        load::settle(&fleet).await?;
        let agents = load::register(&fleet, AGENTS, BATCH).await?;
        rates.push(load::drain(&fleet, agents, BATCH, each).await?);
    }
    load::reconcile(&fleet, each * stage.rounds).await?;
    fleet.close().await?;
    let figure =
        Figure::new(NAME, format!("{AGENTS} agents, {BATCH} tasks a call"), &rates, "cycles/s");
    report.add(if floors.is_empty() {
        figure
    } else {
        figure.against("SQL floor", &floors).wanted(Bound::AtLeast(TIMES_FLOOR))
    });
    Ok(())
}
