//! `enqueue`: tasks created in arrays of 500; against a raw bulk insert of the same rows, 500 tasks a commit.

use std::time::Instant;

use futures_util::future::try_join_all;

use super::{
    floor,
    load::{ARRAY, array, create_array},
    report::{Bound, Figure, Report},
    stage::{Fleet, Stage},
};

const NAME: &str = "enqueue";
/// Callers at once; the best of these counts, as it does for the raw clients.
pub(super) const CALLERS: [usize; 3] = [1, 2, 4];
const PART_OF_RAW: f64 = 0.5;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let fleet = stage.fleet(NAME).await?;
    let arrays = if stage.quick { 4 } else { 80 };
    let (mut raw, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..stage.rounds {
        if let Some(database) = &fleet.database {
            raw.push(floor::enqueue(stage, database, arrays).await?);
        }
        let mut best = 0.0_f64;
        for callers in CALLERS {
            best = best.max(measure(&fleet, callers, arrays / callers).await?);
        }
        rates.push(best);
    }
    fleet.close().await?;
    let what = format!("arrays of {ARRAY}, best of 1, 2 and 4 callers");
    let figure = Figure::new(NAME, what, &rates, "tasks/s");
    if raw.is_empty() {
        report.add(figure);
        return Ok(());
    }
    let what =
        format!("raw insert of the same rows, {ARRAY} tasks a commit, best of 1, 2 and 4 clients");
    report.add(Figure::new(NAME, what, &raw, "tasks/s"));
    report.add(figure.against("raw insert", &raw).wanted(Bound::AtLeast(PART_OF_RAW)));
    Ok(())
}

async fn measure(fleet: &Fleet<'_>, callers: usize, arrays: usize) -> anyhow::Result<f64> {
    fleet.stage().progress.begin(&format!("creating tasks, {callers} callers"));
    let body = array(&fleet.capability, ARRAY);
    let mut connections = Vec::new();
    for caller in 0..callers {
        connections.push(fleet.admin(caller).await?);
    }
    let calling = connections.iter_mut().map(|connection| async {
        for _ in 0..arrays {
            create_array(connection, &body, ARRAY).await?;
        }
        anyhow::Ok(())
    });
    let began = Instant::now();
    try_join_all(calling).await?;
    Ok((callers * arrays * ARRAY) as f64 / began.elapsed().as_secs_f64())
}
