//! The views and functions of `sql/views/` and `sql/functions/`: not migrations, since each has one text that is changed
//! where it stands. `migrate` applies the set as a whole, in one transaction, when it is new to the database.
//!
//! What the coordinator does by a statement and a DBA by a function is one text: the function is built round the file.

use sha2::{Digest, Sha256};
use tokio_postgres::{Client, Transaction, error::SqlState};

use super::{
    StoreError, migration_names,
    statement::{FIND_DEFINITIONS, INSERT_DEFINITIONS},
};

/// One file of `sql/views/` or `sql/functions/`.
struct Definition {
    name: &'static str,
    text: &'static str,
}

macro_rules! definitions {
    ($list:ident, $folder:literal: $($name:literal)+) => {
        const $list: &[Definition] = &[$(
            Definition { name: $name, text: include_str!(concat!("../../sql/", $folder, "/", $name, ".sql")) },
        )+];
    };
}

/// A statement of the coordinator as a function of the same name, for the functions of the DBA to use. It runs with the
/// rights of its caller, and only they may call it.
macro_rules! built {
    ($($name:literal $parameters:literal $result:literal)+) => {
        const BUILT: &[Definition] = &[$(Definition {
            name: $name,
            text: concat!(
                "drop function if exists fleet.", $name, ";\n",
                "create function fleet.", $name, "(", $parameters, ") returns ", $result, "\n",
                "language sql volatile set search_path = pg_catalog, pg_temp as $statement$\n",
                include_str!(concat!("../../sql/", $name, ".sql")), "$statement$;\n",
                "comment on function fleet.", $name, " is 'Inner part: the coordinator''s own statement sql/",
                $name, ".sql.'"
            ),
        },)+];
    };
}

built! {
    "assign_task" "uuid, text, text, double precision, text"
        "table (status text, lease bigint, holder uuid, applied boolean, xid text)"
    "cancel_task" "uuid, text, text"
        "table (status text, lease bigint, holder uuid, applied boolean, xid text, trace jsonb)"
    "delete_old_deliveries" "double precision, integer" "table (deleted bigint)"
    "delete_old_keys" "double precision, integer" "table (deleted bigint)"
    "find_target" "text, uuid" "table (kind text, capable boolean)"
    // What it returns is for the coordinator alone.
    "insert_tasks"
        "uuid[], text[], text[], smallint[], text[], integer[], integer[], timestamptz[], text[], text[], text[], text[],
         jsonb[], text[], bytea[], bigint[], boolean[], text[], text[], boolean"
        "void"
    "purge_tasks" "double precision, uuid, boolean, integer" "table (last_id uuid, purged bigint)"
    "retry_task" "uuid, text, text, text" "table (status text, lease bigint, holder uuid, applied boolean, xid text)"
    "set_lane_paused" "text[], boolean" "table (lane_id bigint, paused_at timestamptz)"
}

definitions! { FUNCTIONS, "functions":
    "apply_grants"
    "assign"
    "cancel"
    "drain_agent"
    "enqueue"
    "pause_lane"
    "purge"
    "refuse"
    "required_capabilities"
    "resume_agent"
    "resume_lane"
    "retry"
    "set_lane"
    "task_id_of"
}

// A view may use those above it.
definitions! { VIEWS, "views":
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

/// Names of the functions that have a file of their own.
pub fn function_names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|function| function.name)
}

fn all() -> impl Iterator<Item = &'static Definition> {
    BUILT.iter().chain(FUNCTIONS).chain(VIEWS)
}

/// Names this set. The program's version and its newest migration are part of it, so that a set that returns to an earlier
/// text is a new one.
pub(super) fn checksum() -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(migration_names().pop().unwrap_or_default());
    for definition in all() {
        hasher.update(definition.text);
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
    tx.execute(INSERT_DEFINITIONS.text, &[&checksum(), &env!("CARGO_PKG_VERSION")])
        .await
        .map_err(sql)?;
    tx.commit().await.map_err(sql)?;
    Ok(true)
}

/// All or none of them.
async fn replace(tx: &mut Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    let point = tx.savepoint("replace").await?;
    for definition in all() {
        point.batch_execute(definition.text).await?;
    }
    point.commit().await
}

/// True when the set, or a newer one that replaced it, is in force.
async fn is_known(client: &Client) -> Result<bool, StoreError> {
    let row = client.query_one(FIND_DEFINITIONS.text, &[&checksum()]).await.map_err(sql)?;
    Ok(row.get(0))
}
