//! `agent-fleet migrate`: brings the database to the schema of this version, and makes its roles.

use super::{Failure, Outcome, terminal::print};
use crate::{config::Config, store::Store, telemetry};

/// Arguments of `migrate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also make the roles `fleet_owner`, `fleet_app`, `fleet_readonly` and `fleet_maintenance`, and give each its rights. May be
    /// repeated. Needs an account that may create roles.
    #[arg(long)]
    roles: bool,
}

/// Runs `migrate`.
pub(super) async fn command(args: &Args, config: &Config) -> Outcome {
    telemetry::init(&config.log).map_err(|error| Failure::Usage(error.into()))?;
    let store = Store::new(&config.database, &config.server.replica_id)
        .map_err(|error| Failure::Usage(error.into()))?;
    let migrated = store.migrate().await?;
    if migrated.applied.is_empty() && !migrated.definitions {
        print("The schema is up to date.\n")?;
    }
    for name in migrated.applied {
        print(&format!("applied {name}\n"))?;
    }
    if migrated.definitions {
        print("applied the views and functions\n")?;
    }
    if args.roles {
        store.make_roles().await?;
        print("The roles are there: fleet_owner, fleet_app, fleet_readonly, fleet_maintenance.\n")?;
    }
    Ok(())
}
