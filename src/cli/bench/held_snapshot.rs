//! `held-snapshot`: somebody leaves a transaction open for 3 minutes, so that nothing can be vacuumed: how far the rate
//! falls, and whether it comes back within a minute after the transaction ends.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{
    load::{self, ARRAY, Crew, Tally},
    report::{Bound, Figure, Report},
    stage::Stage,
};

const NAME: &str = "held-snapshot";
const AGENTS: usize = 64;
const KEPT: f64 = 0.7;
/// What counts as recovered.
const RECOVERED: f64 = 0.95;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..stage.rounds {
        rounds.push(measure(stage).await?);
    }
    let [before, held, after] =
        [0, 1, 2].map(|when| rounds.iter().map(|rates| rates[when]).collect::<Vec<f64>>());
    report.add(Figure::new(NAME, "before", &before, "cycles/s"));
    for (what, rates, least) in
        [("after 3 minutes", held, KEPT), ("a minute after its end", after, RECOVERED)]
    {
        let figure = Figure::new(NAME, what, &rates, "cycles/s").against("before", &before);
        report.add(figure.wanted(Bound::AtLeast(least)));
    }
    Ok(())
}

/// One round, on a new database: the rates before, after 3 minutes, and a minute after the end.
async fn measure(stage: &Stage) -> anyhow::Result<[f64; 3]> {
    let seconds = |full: f64| Duration::from_secs_f64(if stage.quick { full / 60.0 } else { full });
    let fleet = stage.fleet(NAME).await?;
    let database = fleet.database.as_ref().context(
        "held-snapshot: the transaction is held in the database, so it must be the bench's own; leave this scenario out",
    )?;
    let agents = load::register(&fleet, AGENTS, 1).await?;
    let tally = Arc::new(Tally::new(usize::MAX, []));
    let crew = Crew::set_to_work(agents, 1, &tally);
    let enough = CancellationToken::new();
    let feeding = load::feed(
        fleet.admin(0).await?,
        fleet.capability.clone(),
        Arc::clone(&tally),
        usize::MAX,
        enough.clone(),
    );
    let window = seconds(15.0);
    let rate = async || {
        let before = tally.done();
        tokio::time::sleep(window).await;
        (tally.done() - before) as f64 / window.as_secs_f64()
    };
    let measuring = async {
        while tally.done() < ARRAY {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(seconds(5.0)).await;
        let before = rate().await;
        let snapshot = database.hold_snapshot().await?;
        tokio::time::sleep(seconds(180.0) - window).await;
        let held = rate().await;
        snapshot.release().await?;
        tokio::time::sleep(seconds(60.0) - window).await;
        let after = rate().await;
        enough.cancel();
        anyhow::Ok([before, held, after])
    };
    let (rates, (), ()) = tokio::try_join!(measuring, feeding, crew.finish(&fleet))?;
    load::reconcile(&fleet, tally.done()).await?;
    fleet.close().await?;
    Ok(rates)
}
