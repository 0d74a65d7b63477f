//! `held-snapshot`: somebody leaves a transaction open for 3 minutes, so that nothing can be vacuumed: how far the rate
//! falls, and whether it comes back within a minute after the transaction ends.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    load::{self, ARRAY, Crew, Tally},
    report::{Bound, Figure, Report},
    stage::Stage,
    usage::Usage,
};

const NAME: &str = "held-snapshot";
const AGENTS: usize = 64;
/// When it is measured, and what is wanted there of the rate before; the last counts as recovered.
const WHEN: [(&str, Option<f64>); 3] =
    [("before", None), ("after 3 minutes", Some(0.7)), ("a minute after its end", Some(0.95))];

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..stage.rounds {
        rounds.push(measure(stage).await?);
    }
    let each = |when: usize, of: fn(&Stretch) -> Option<f64>| {
        rounds.iter().filter_map(|stretches| of(&stretches[when])).collect::<Vec<f64>>()
    };
    let before = each(0, |stretch| Some(stretch.rate));
    for (when, (what, least)) in WHEN.into_iter().enumerate() {
        let figure = Figure::new(NAME, what, &each(when, |stretch| Some(stretch.rate)), "cycles/s");
        report.add(match least {
            Some(least) => figure.against("before", &before).wanted(Bound::AtLeast(least)),
            None => figure,
        });
    }
    // The load does the same for each cycle all the time: where it needs more, the machine has become slower.
    let load_before = each(0, |stretch| stretch.load);
    if load_before.is_empty() {
        return Ok(());
    }
    for (when, (what, _)) in WHEN.into_iter().enumerate() {
        let what = format!("{what}: processor time of the load a cycle");
        let figure = Figure::new(NAME, what, &each(when, |stretch| stretch.load), "µs");
        report.add(if when == 0 { figure } else { figure.against("before", &load_before) });
    }
    Ok(())
}

/// A stretch of one round.
struct Stretch {
    /// Cycles a second.
    rate: f64,
    /// Microseconds of processor time of the load a cycle; `None` where it cannot be told.
    load: Option<f64>,
}

/// One round, on a new database: before, after 3 minutes, and a minute after the end.
async fn measure(stage: &Stage) -> anyhow::Result<[Stretch; 3]> {
    let seconds = |full: f64| Duration::from_secs_f64(if stage.quick { full / 60.0 } else { full });
    let fleet = stage.fleet(NAME).await?;
    let database = fleet.own_database()?;
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
    let stretch = async || {
        let (done, used) = (tally.done(), Usage::read(&fleet));
        tokio::time::sleep(window).await;
        let cycles = tally.done() - done;
        let used = used.zip(Usage::read(&fleet)).map(|(before, after)| after.each(&before, cycles));
        Stretch { rate: cycles as f64 / window.as_secs_f64(), load: used.map(|[load, ..]| load) }
    };
    let measuring = async {
        while tally.done() < ARRAY {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(seconds(5.0)).await;
        let before = stretch().await;
        let snapshot = database.hold_snapshot().await?;
        tokio::time::sleep(seconds(180.0) - window).await;
        let held = stretch().await;
        snapshot.release().await?;
        tokio::time::sleep(seconds(60.0) - window).await;
        let after = stretch().await;
        enough.cancel();
        anyhow::Ok([before, held, after])
    };
    let (stretches, (), ()) = tokio::try_join!(measuring, feeding, crew.finish(&fleet))?;
    load::reconcile(&fleet, tally.done()).await?;
    fleet.close().await?;
    Ok(stretches)
}
