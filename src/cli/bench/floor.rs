//! The floor: what raw SQL clients reach with the same writes on the same database, by `pgbench -M prepared`. Its
//! scripts are in `floor/`.

use anyhow::ensure;
use serde::Deserialize;

use super::{database::Database, stage::Stage};

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

/// Claim and completion with their events and receipt, one task a commit: cycles a second.
pub(super) async fn cycles(stage: &Stage, database: &Database<'_>) -> anyhow::Result<f64> {
    let each = if stage.quick { 320 } else { 25_600 };
    let mut best = 0.0_f64;
    for clients in CLIENTS {
        stage.progress.begin(&format!("the SQL floor with {clients} clients"));
        let tasks = each.to_string();
        let made = [("lane", LANE), ("tasks", tasks.as_str())];
        let Prepared { lane_id } = database.run(include_str!("floor/prepare.sql"), &made).await?;
        let _: serde::de::IgnoredAny = database.run(include_str!("sql/settle.sql"), &[]).await?;
        let lane_id = lane_id.to_string();
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
