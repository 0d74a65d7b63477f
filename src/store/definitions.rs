//! The views of `sql/views/`: not migrations, since each has one text that is changed where it stands. `migrate` applies the
//! set as a whole, in one transaction, when it is new to the database.

use sha2::{Digest, Sha256};
use tokio_postgres::{Client, Transaction, error::SqlState};

use super::{StoreError, migration_names};

/// One file of `sql/views/`.
struct View {
    name: &'static str,
    text: &'static str,
}

macro_rules! views {
    ($($name:literal)+) => {
        /// A view may use those above it.
        const VIEWS: &[View] = &[$(
            View { name: $name, text: include_str!(concat!("../../sql/views/", $name, ".sql")) },
        )+];
    };
}

views! {
    "agent_load"
    "blockers"
    "failures"
    "forge_backlog"
    "host_load"
    "lane_reasons"
    "latency"
    "queue_depth"
    "replica_status"
    "running_tasks"
    "storage"
    "stuck_tasks"
    "task_timeline"
    "throughput"
    "waiting_tasks"
    "webhook_activity"
}

/// Names of the views, in the order in which they are made.
pub fn view_names() -> impl Iterator<Item = &'static str> {
    VIEWS.iter().map(|view| view.name)
}

/// Names this set. The program's version and its newest migration are part of it, so that a set that returns to an earlier
/// text is a new one.
fn checksum() -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(migration_names().pop().unwrap_or_default());
    for view in VIEWS {
        hasher.update(view.text);
    }
    hex::encode(hasher.finalize())
}

fn sql(source: tokio_postgres::Error) -> StoreError {
    StoreError::Statement { statement: "apply_definitions", source }
}

/// Applies the set, unless it has ever been applied here: then this program is as old as the newest set, or older. True
/// when it did something.
pub(super) async fn apply(client: &mut Client) -> Result<bool, StoreError> {
    if is_known(client).await? {
        return Ok(false);
    }
    let mut tx = client.transaction().await.map_err(sql)?;
    if let Err(error) = replace(&mut tx).await {
        // A column has gone or has another type.
        if error.code() != Some(&SqlState::INVALID_TABLE_DEFINITION) {
            return Err(sql(error));
        }
        for view in VIEWS.iter().rev() {
            let drop = format!("drop view if exists fleet.{}", view.name);
            tx.batch_execute(&drop).await.map_err(sql)?;
        }
        replace(&mut tx).await.map_err(sql)?;
    }
    tx.execute(
        "insert into fleet.definitions (checksum, version) values ($1, $2)",
        &[&checksum(), &env!("CARGO_PKG_VERSION")],
    )
    .await
    .map_err(sql)?;
    tx.commit().await.map_err(sql)?;
    Ok(true)
}

/// All or none of them.
async fn replace(tx: &mut Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    let point = tx.savepoint("replace").await?;
    for view in VIEWS {
        point.batch_execute(view.text).await?;
    }
    point.commit().await
}

/// True when the set, or a newer one that replaced it, is in force.
pub(super) async fn is_known(client: &Client) -> Result<bool, StoreError> {
    let row = client
        .query_one(
            "select exists (select 1 from fleet.definitions where checksum = $1)",
            &[&checksum()],
        )
        .await
        .map_err(sql)?;
    Ok(row.get(0))
}
