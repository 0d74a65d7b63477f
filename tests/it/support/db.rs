//! A real PostgreSQL: `TEST_DATABASE_URL` if set, else one for this process; one database for each test. Stores and replicas
//! connect as `af_app`, which is `fleet_app` and no more; only the client for raw SQL is the owner.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
    mpsc,
};

use agent_fleet::{
    cli::dev::postgres::Cluster,
    config::{Database, Secret},
    store::{STATEMENTS, Store},
};
use tokio_postgres::{Client, Config, NoTls, Row, types::ToSql};

use super::history;

/// A migrated database of one test. Channels and advisory locks are per database, so tests do not hear each other.
pub(crate) struct Db {
    url: String,
    owners_url: String,
    /// For statements that no API has; as the owner.
    pub(crate) client: Client,
}

/// The address of a database of the shared server.
fn url_of(dbname: &str) -> String {
    static SERVER: OnceLock<String> = OnceLock::new();
    let base = SERVER.get_or_init(|| match std::env::var("TEST_DATABASE_URL") {
        Ok(url) => url,
        Err(_) => start_server(),
    });
    let mut config: Config = base.parse().unwrap();
    config.dbname(dbname);
    if let Some(tokio_postgres::config::Host::Unix(dir)) = config.get_hosts().first() {
        let user = config.get_user().unwrap_or("agent_fleet");
        let port = config.get_ports().first().unwrap_or(&5432);
        return format!("host={} port={port} user={user} dbname={dbname}", dir.display());
    }
    let (scheme, rest) =
        base.split_once("://").expect("TEST_DATABASE_URL is a postgres:// address");
    let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
    let query = path.split_once('?').map(|(_, q)| format!("?{q}")).unwrap_or_default();
    format!("{scheme}://{server}/{dbname}{query}")
}

/// A server that ends with this process, on a runtime of its own: those of the tests come and go.
fn start_server() -> String {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::start_temporary().await.expect("a PostgreSQL for the tests");
            send.send(cluster.url("postgres")).unwrap();
            std::future::pending::<()>().await;
        });
    });
    receive.recv().expect("a PostgreSQL for the tests")
}

/// The same address for another account.
fn url_as(url: &str, user: &str, password: &str) -> String {
    let config: Config = url.parse().unwrap();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let server = rest.rsplit_once('@').map_or(rest, |(_, server)| server);
            format!("{scheme}://{user}:{password}@{server}")
        }
        None => url.replace(
            &format!("user={}", config.get_user().unwrap_or_default()),
            &format!("user={user} password={password}"),
        ),
    }
}

async fn connect(dbname: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(&url_of(dbname), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The text of the statement of this name.
pub(crate) fn sql(name: &str) -> &'static str {
    STATEMENTS.iter().find(|s| s.name == name).unwrap().text
}

/// What makes a [`Store`] of an address.
pub(crate) fn database(url: &str) -> Database {
    Database { url: Some(Secret::new(url)), listen_url: None, max_connections: 16 }
}

/// The template is migrated once a process.
async fn template() -> &'static str {
    static TEMPLATE: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let name = format!("af_template_{}", std::process::id());
            let admin = connect("postgres").await;
            admin.batch_execute(&format!("drop database if exists {name}")).await.unwrap();
            admin.batch_execute(&format!("create database {name}")).await.unwrap();
            let store = Store::new(&database(&url_of(&name)), "template").unwrap();
            store.migrate().await.unwrap();
            store.make_roles().await.unwrap();
            store.close();
            // Another process of the tests may be making it on the same server.
            admin
                .batch_execute(
                    "do $$ begin create role af_app login password 'af_app' in role fleet_app;
                     exception when duplicate_object or unique_violation then null; end $$",
                )
                .await
                .unwrap();
            name
        })
        .await
}

impl Db {
    /// A fresh, migrated database.
    pub(crate) async fn new() -> Self {
        let template = template().await.to_owned();
        let mut db =
            Self::made_by(|name| format!("create database {name} template {template}")).await;
        db.url = url_as(&db.owners_url, "af_app", "af_app");
        db
    }

    /// A fresh, empty database; its stores are the owner's, so that it can be migrated.
    pub(crate) async fn empty() -> Self {
        Self::made_by(|name| format!("create database {name}")).await
    }

    async fn made_by(sql: impl Fn(&str) -> String) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("af_test_{}_{number}", std::process::id());
        let admin = connect("postgres").await;
        admin.batch_execute(&format!("drop database if exists {name} with (force)")).await.unwrap();
        // The template may still have a session that is going away.
        super::eventually("the database is made", async || {
            admin.batch_execute(&sql(&name)).await.ok()
        })
        .await;
        let url = url_of(&name);
        Self { client: connect(&name).await, owners_url: url.clone(), url }
    }

    /// Its address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Another session of the owner's.
    pub(crate) async fn connect(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.owners_url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A store of its own.
    pub(crate) fn store(&self) -> Store {
        Store::new(&database(&self.url), "test").unwrap()
    }

    /// A store that may change the schema.
    pub(crate) fn owners_store(&self) -> Store {
        Store::new(&database(&self.owners_url), "owner").unwrap()
    }

    /// A store of another account.
    pub(crate) fn store_as(&self, user: &str, password: &str) -> Store {
        Store::new(&database(&url_as(&self.owners_url, user, password)), "test").unwrap()
    }

    /// Rows of a statement.
    pub(crate) async fn rows(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.client.query(sql, params).await.unwrap()
    }

    /// One number.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Runs statements.
    pub(crate) async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// Waits until so many sessions of this database wait for a lock.
    pub(crate) async fn until_waiting(&self, sessions: i64) {
        let waiting = "select count(*) from pg_stat_activity
                        where datname = current_database() and wait_event_type = 'Lock'";
        super::eventually("they wait for a lock", async || {
            (self.count(waiting).await >= sessions).then_some(())
        })
        .await;
    }

    /// Lets sessions write nothing any more (`on`), or again (`off`), as a standby does; those of replicas begin anew.
    pub(crate) async fn set_read_only(&self, value: &str) {
        let sql = format!(
            "do $$ begin execute format('alter database %I set default_transaction_read_only = {value}', \
             current_database()); end $$"
        );
        let admin = self.connect().await;
        admin.batch_execute("set default_transaction_read_only = off").await.unwrap();
        admin.batch_execute(&sql).await.unwrap();
        self.end_sessions().await;
    }

    /// Ends all sessions of replicas, and waits until each has ended. Returns how many.
    pub(crate) async fn end_sessions(&self) -> i64 {
        self.count(
            "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity
              where datname = current_database() and application_name like 'agent-fleet/%'",
        )
        .await
    }

    /// See [`history::check`]. Called at the end of tests.
    pub(crate) async fn check_history(&self) {
        let broken = history::check(&self.client).await.unwrap();
        assert!(broken.is_empty(), "{}", broken.join("; "));
    }
}
