//! A streaming standby of a PostgreSQL that this process started.

use std::{os::unix::process::CommandExt as _, process::Command};

use agent_fleet::cli::dev::postgres::Cluster;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// A server of the test's own, whose data lasts as long as this.
pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    pub(crate) dir: TempDir,
}

/// A folder that the user of PostgreSQL can enter.
fn folder() -> TempDir {
    let dir = tempfile::Builder::new().prefix("af-pg").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    dir
}

/// A session on it.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Who runs PostgreSQL here: `postgres` when this is root.
fn account(command: &mut Command) {
    let id = |args: &[&str]| {
        let said = Command::new("id").args(args).output().unwrap().stdout;
        String::from_utf8(said).unwrap().trim().parse::<u32>().ok()
    };
    if id(&["-u"]) == Some(0) {
        let ids = id(&["-u", "postgres"]).zip(id(&["-g", "postgres"]));
        let (user, group) = ids.expect("a user postgres, since root cannot run it");
        command.uid(user).gid(group);
    }
}

/// Runs a program as the user of PostgreSQL.
pub(crate) fn as_postgres(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    account(&mut command);
    command.current_dir("/");
    command
}

impl Server {
    /// A new one with the empty database `fleet`.
    pub(crate) async fn start() -> Self {
        let dir = folder();
        let cluster = Cluster::start(&dir.path().join("postgres")).await.unwrap();
        cluster.create_database("fleet").await.unwrap();
        Self { cluster, dir }
    }

    /// How to reach its database.
    pub(crate) fn url(&self) -> String {
        self.cluster.url("fleet")
    }

    /// With a standby that streams from it and answers reads; `select pg_promote()` on that one makes it take writes. The
    /// server is stopped for a moment, and copied.
    pub(crate) async fn with_standby(self) -> (Self, Self) {
        let Self { cluster, dir } = self;
        cluster.stop().await.unwrap();
        let copy = folder();
        let home = |dir: &TempDir| dir.path().join("postgres");
        let mut copying = Command::new("cp");
        copying.arg("-a").arg(home(&dir)).arg(home(&copy));
        assert!(copying.status().unwrap().success());
        let primary = Self { cluster: Cluster::start(&home(&dir)).await.unwrap(), dir };
        let data = home(&copy).join("data");
        let settings = format!("primary_conninfo = '{}'\n", primary.cluster.url("postgres"));
        std::fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        std::fs::write(data.join("standby.signal"), "").unwrap();
        let standby = Self { cluster: Cluster::start(&home(&copy)).await.unwrap(), dir: copy };
        let client = connect(&primary.url()).await;
        super::eventually("the standby streams", async || {
            let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
            let row = client.query_one(streams, &[]).await.unwrap();
            (row.get::<_, i64>(0) == 1).then_some(())
        })
        .await;
        (primary, standby)
    }

    /// One address for both: `host=…,… port=…,…`.
    pub(crate) fn url_with(&self, other: &Self) -> String {
        let value = |url: &str, key: &str| {
            let found = url.split(' ').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
            found.unwrap().to_owned()
        };
        let (one, two) = (self.url(), other.url());
        format!(
            "host={},{} port={},{} user={} dbname=fleet",
            value(&one, "host"),
            value(&two, "host"),
            value(&one, "port"),
            value(&two, "port"),
            value(&one, "user"),
        )
    }
}
