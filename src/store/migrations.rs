//! Migrations: applied by one replica at a time, checked by all.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::{
    Store, StoreError, definitions,
    rows::get,
    statement::{FIND_DEFINITIONS, LIST_MIGRATIONS, MAKE_ROLES},
};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Where refinery keeps its history.
const HISTORY: &str = "fleet.schema_history";
/// The advisory lock that migrating replicas queue for: "fleet" in ASCII.
const LOCK: i64 = 0x66_6c_65_65_74;

/// What migrating did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Names of the migrations applied now, `V0001__schema` and so on.
    pub applied: Vec<String>,
    /// True when the views and functions were made or made anew.
    pub definitions: bool,
}

/// Names of the migrations that this program embeds.
pub fn migration_names() -> Vec<String> {
    embedded::migrations::runner().get_migrations().iter().map(ToString::to_string).collect()
}

fn runner() -> refinery::Runner {
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    runner
}

impl Store {
    /// Applies what is missing, then the views and functions, then the rights of the roles where there are any. Safe on all replicas at once: a polled try-lock, on the very connection
    /// that migrates. Polled, because a session that waits inside `pg_advisory_lock` holds a snapshot, which `create
    /// index concurrently` would wait for: a deadlock.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        let mut client = self.dedicated().await?;
        let sql = |source| StoreError::Statement { statement: "migrate", source };
        // Migrations may take their time; they must not queue behind a long lock for ever.
        client
            .batch_execute("set statement_timeout = 0; set lock_timeout = '10s'; set idle_in_transaction_session_timeout = 0")
            .await
            .map_err(sql)?;
        loop {
            let row =
                client.query_one("select pg_try_advisory_lock($1)", &[&LOCK]).await.map_err(sql)?;
            if row.get::<_, bool>(0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        client.batch_execute("create schema if not exists fleet").await.map_err(sql)?;
        let report = runner().run_async(&mut client).await.map_err(StoreError::Migration)?;
        let definitions = definitions::apply(&mut client).await?;
        if definitions || !report.applied_migrations().is_empty() {
            // What is new has an owner and rights like the rest.
            client
                .execute(
                    "select fleet.apply_grants() from pg_roles
                      where rolname = 'fleet_owner' and pg_has_role(current_user, oid, 'member')",
                    &[],
                )
                .await
                .map_err(sql)?;
        }
        // The lock goes with the connection.
        Ok(Migrated {
            applied: report.applied_migrations().iter().map(ToString::to_string).collect(),
            definitions,
        })
    }

    /// Makes the roles of the cluster, and gives each object of a migrated schema its owner and each role its rights. Safe
    /// to repeat and to race. Needs an account that may create roles.
    pub async fn make_roles(&self) -> Result<(), StoreError> {
        let client = self.dedicated().await?;
        client
            .batch_execute(MAKE_ROLES.text)
            .await
            .map_err(|source| StoreError::Statement { statement: MAKE_ROLES.name, source })?;
        client
            .execute("select fleet.apply_grants()", &[])
            .await
            .map_err(|source| StoreError::Statement { statement: "apply_grants", source })?;
        Ok(())
    }

    /// Checks that every migration that this program knows has been applied, unaltered, and so have its definitions. A newer
    /// schema is fine: the expand → contract rule (`migrations/README.md`) keeps it usable.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let applied = match self.texts(LIST_MIGRATIONS.name, LIST_MIGRATIONS.text).await {
            Err(StoreError::Statement { source, .. })
                if source.code() == Some(&SqlState::UNDEFINED_TABLE) =>
            {
                return Err(StoreError::Schema(
                    "the database has no schema of agent-fleet; run `agent-fleet migrate`, or serve with --migrate".into(),
                ));
            }
            applied => applied?,
        };
        for known in runner().get_migrations() {
            let version = known.version().to_string();
            match applied.iter().find(|row| row.get("version") == Some(version.as_str())) {
                None => {
                    return Err(StoreError::Schema(format!(
                        "the database lacks migration {known}; run `agent-fleet migrate`, or serve with --migrate"
                    )));
                }
                Some(row) if row.get("checksum") != Some(known.checksum().to_string().as_str()) => {
                    return Err(StoreError::Schema(format!(
                        "migration {known} in the database is not the one that this program was built with"
                    )));
                }
                Some(_) => {}
            }
        }
        let client = self.client().await?;
        let definitions = FIND_DEFINITIONS.one(&client, &[&definitions::checksum()]).await?;
        if get(&definitions, "known") {
            Ok(())
        } else {
            Err(StoreError::Schema(
                "the database lacks the views and functions of this version; run `agent-fleet migrate`, or serve with --migrate".into(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_file_is_embedded() {
        let mut files: Vec<String> = std::fs::read_dir("migrations")
            .unwrap()
            .filter_map(|f| {
                f.unwrap()
                    .file_name()
                    .into_string()
                    .unwrap()
                    .strip_suffix(".sql")
                    .map(str::to_owned)
            })
            .collect();
        files.sort();
        let stems: Vec<String> = super::embedded::migrations::runner()
            .get_migrations()
            .iter()
            .map(|m| format!("V{:04}__{}", m.version(), m.name()))
            .collect();
        assert_eq!(stems, files);
    }
}
