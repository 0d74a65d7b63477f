//! The pool, and how each session of it is set up.

use std::time::Duration;

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts, Transaction,
};
use tokio_postgres::{Config, IsolationLevel, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use crate::config::{Database, Secret};

/// What every session of ours must have; checked by SHOW, since a pooler may drop connection options.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "15s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("client_connection_check_interval", "5s"),
];

/// The database, as the rest of the program sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    config: Config,
    listen_config: Config,
}

/// How to connect: `sslmode=require` in the address means TLS with a verified certificate; anything else means none.
#[derive(Clone)]
pub(super) enum Tls {
    Off,
    Verified(MakeRustlsConnect),
}

impl Store {
    /// Sets the pool up; connects nothing yet. `replica_id` shows in `pg_stat_activity`.
    pub fn new(database: &Database, replica_id: &str) -> Result<Self, StoreError> {
        let url = database.url.as_ref().ok_or_else(|| StoreError::Address {
            reason: "it is not set; set DATABASE_URL".into(),
        })?;
        let config = session_config(url, replica_id)?;
        let listen_config =
            session_config(database.listen_url.as_ref().unwrap_or(url), replica_id)?;
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match tls(&config)? {
            Tls::Off => Manager::from_config(config.clone(), NoTls, manager_config),
            Tls::Verified(tls) => Manager::from_config(config.clone(), tls, manager_config),
        };
        let pool = Pool::builder(manager)
            .max_size(database.max_connections)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(Duration::from_secs(2)),
                create: Some(Duration::from_secs(5)),
                recycle: Some(Duration::from_secs(2)),
            })
            .build()
            .map_err(|e| StoreError::Address { reason: e.to_string() })?;
        Ok(Self { pool, config, listen_config })
    }

    /// A connection of the pool.
    pub(super) async fn client(&self) -> Result<Object, StoreError> {
        Ok(self.pool.get().await?)
    }

    pub(super) fn listen_config(&self) -> &Config {
        &self.listen_config
    }

    pub(super) fn session_config(&self) -> &Config {
        &self.config
    }

    /// Connections of the pool: how many there may be, are, are free, and how many callers wait for one.
    pub(crate) fn pool_status(&self) -> deadpool_postgres::Status {
        self.pool.status()
    }

    /// Asks the database for a sign of life.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let client = self.client().await?;
        client
            .simple_query("select 1")
            .await
            .map_err(|source| StoreError::Statement { statement: "ping", source })?;
        Ok(())
    }

    /// Checks that sessions are set up as they must be.
    pub async fn check_settings(&self) -> Result<(), StoreError> {
        let client = self.client().await?;
        for &(setting, wanted) in SETTINGS {
            let row = client
                .query_one(&format!("show {setting}"), &[])
                .await
                .map_err(|source| StoreError::Statement { statement: "show", source })?;
            let actual: String = row.get(0);
            if actual != wanted {
                return Err(StoreError::Setting { setting, actual, wanted });
            }
        }
        Ok(())
    }

    /// Closes the pool: what waits for a connection fails, idle ones are closed.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// Begins a transaction.
pub(super) async fn begin(client: &mut Object) -> Result<Transaction<'_>, StoreError> {
    client
        .transaction()
        .await
        .map_err(|source| StoreError::Statement { statement: "begin", source })
}

/// Begins a transaction that only reads, all of it as of one moment.
pub(super) async fn begin_snapshot(client: &mut Object) -> Result<Transaction<'_>, StoreError> {
    client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(|source| StoreError::Statement { statement: "begin", source })
}

/// Commits. An error may mean that it was committed all the same: every write must be safe to repeat.
pub(super) async fn commit(tx: Transaction<'_>) -> Result<(), StoreError> {
    let started = std::time::Instant::now();
    tx.commit().await.map_err(|source| StoreError::Statement { statement: "commit", source })?;
    crate::metrics::commit(started.elapsed());
    Ok(())
}

fn session_config(url: &Secret, replica_id: &str) -> Result<Config, StoreError> {
    let mut config: Config = url.expose().parse().map_err(|e: tokio_postgres::Error| {
        // The parser's cause names the bad part of the address, never the password.
        let reason =
            std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
        StoreError::Address { reason }
    })?;
    let mut options = config.get_options().unwrap_or_default().to_owned();
    for (setting, value) in SETTINGS {
        options.push_str(&format!(" -c {setting}={value}"));
    }
    config
        .options(options.trim())
        .application_name(format!("agent-fleet/{replica_id}"))
        .connect_timeout(Duration::from_secs(5))
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(20));
    if config.get_ssl_mode() == SslMode::Prefer {
        config.ssl_mode(SslMode::Disable);
    }
    Ok(config)
}

pub(super) fn tls(config: &Config) -> Result<Tls, StoreError> {
    if config.get_ssl_mode() != SslMode::Require {
        return Ok(Tls::Off);
    }
    crate::tls::install_provider();
    MakeRustlsConnect::with_native_certs().map(|(tls, _)| Tls::Verified(tls)).map_err(|e| {
        StoreError::Address {
            reason: format!(
                "sslmode=require needs certificate authorities, and none could be loaded: {e:?}"
            ),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_address_is_refused_without_its_password() {
        for url in ["postgres://u:hunter2@h:port/db", "host=h password=hunter2 nonsense=1"] {
            let error = session_config(&Secret::new(url), "r").unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn sessions_carry_their_limits_and_their_name() {
        let config = session_config(&Secret::new("host=h user=u"), "r1").unwrap();
        assert!(config.get_options().unwrap().contains("lock_timeout=5s"));
        assert_eq!(config.get_application_name(), Some("agent-fleet/r1"));
        assert_eq!(config.get_ssl_mode(), SslMode::Disable);
    }
}
