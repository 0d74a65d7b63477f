//! `agent-fleet migrate`: brings the database to the schema of this version.

use super::{Failure, Outcome, terminal::print};
use crate::{config::Config, store::Store, telemetry};

/// Runs `migrate`.
pub(super) async fn command(config: &Config) -> Outcome {
    telemetry::init(&config.log).map_err(|error| Failure::Usage(error.into()))?;
    let store = Store::new(&config.database, &config.server.replica_id)
        .map_err(|error| Failure::Usage(error.into()))?;
    let migrated = store.migrate().await?;
    if migrated.applied.is_empty() && !migrated.views {
        print("The schema is up to date.\n")?;
    }
    for name in migrated.applied {
        print(&format!("applied {name}\n"))?;
    }
    if migrated.views {
        print("applied the views\n")?;
    }
    Ok(())
}
