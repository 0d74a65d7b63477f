//! The floor: what raw SQL clients reach with the same writes on the same database, by `pgbench -M prepared`. Its
//! scripts are in `floor/`.

use anyhow::ensure;
use serde::{Deserialize, de::IgnoredAny};

use super::{database::Database, enqueue::CALLERS, load::ARRAY, stage::Stage};

/// The best of these counts.
const CLIENTS: [usize; 2] = [8, 32];
/// The lane of its tasks.
const LANE: &str = "agent:floor";

#[derive(Deserialize)]
struct Prepared {
    lane_id: i64,
}

#[derive(Deserialize)]
struct Left {
    completed: usize,
    left: usize,
}

/// Makes so many tasks in the floor's lane, and the lane if need be; its id.
async fn prepare(database: &Database<'_>, tasks: usize) -> anyhow::Result<String> {
    let tasks = tasks.to_string();
    let variables = [("lane", LANE), ("tasks", tasks.as_str())];
    let made: Prepared = database.run(include_str!("floor/prepare.sql"), &variables).await?;
    let _: IgnoredAny = database.run(include_str!("sql/settle.sql"), &[]).await?;
    Ok(made.lane_id.to_string())
}

/// Bulk inserts of new tasks, an array a commit: tasks a second.
pub(super) async fn enqueue(
    stage: &Stage,
    database: &Database<'_>,
    arrays: usize,
) -> anyhow::Result<f64> {
    let lane_id = prepare(database, 0).await?;
    let variables = [("lane", lane_id.as_str()), ("capability", LANE)];
    let mut best = 0.0_f64;
    for clients in CALLERS {
        stage.progress.begin(&format!("raw bulk inserts, {clients} clients"));
        let script = include_str!("floor/enqueue.sql");
        best = best.max(database.pgbench(script, &variables, clients, arrays / clients).await?);
    }
    Ok(best * ARRAY as f64)
}

/// Inserts of what one delivery leaves, one delivery a commit: deliveries a second.
pub(super) async fn webhook(
    stage: &Stage,
    database: &Database<'_>,
    deliveries: usize,
) -> anyhow::Result<f64> {
    let lane_id = prepare(database, 0).await?;
    let variables = [("lane", lane_id.as_str()), ("capability", LANE)];
    let mut best = 0.0_f64;
    for clients in CLIENTS {
        stage.progress.begin(&format!("raw deliveries, {clients} clients"));
        let script = include_str!("floor/webhook.sql");
        best = best.max(database.pgbench(script, &variables, clients, deliveries / clients).await?);
    }
    Ok(best)
}

/// Claim and completion with their events and receipt, one task a commit: cycles a second.
pub(super) async fn cycles(stage: &Stage, database: &Database<'_>) -> anyhow::Result<f64> {
    let each = if stage.quick { 320 } else { 25_600 };
    let mut best = 0.0_f64;
    for clients in CLIENTS {
        stage.progress.begin(&format!("the SQL floor with {clients} clients"));
        let lane_id = prepare(database, each).await?;
        let lane = [("lane", lane_id.as_str()), ("actor", "agent:raw-client")];
        let rate = database
            .pgbench(include_str!("floor/cycle.sql"), &lane, clients, each / clients)
            .await?;
        best = best.max(rate);
        let counted: Left =
            database.run(include_str!("floor/reconcile.sql"), &[("lane", LANE)]).await?;
        ensure!(
            counted.left == 0 && counted.completed >= each,
            "the floor left {} tasks",
            counted.left
        );
    }
    Ok(best)
}
