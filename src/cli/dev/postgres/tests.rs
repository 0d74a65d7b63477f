use std::time::Duration;

use super::*;

/// What a query answers, read through `psql`.
async fn ask(cluster: &Cluster, dbname: &str, query: &str) -> String {
    let mut command = cluster.account.command(cluster.binaries.path("psql"));
    command.args(["-X", "-A", "-t", "-c", query, "-d"]).arg(cluster.url(dbname));
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A folder that the server's account can enter.
fn open_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o755);
    tempfile::Builder::new().permissions(mode).tempdir().unwrap()
}

#[tokio::test]
async fn a_kept_cluster_keeps_its_data_and_is_taken_over() {
    let parent = open_dir();
    let dir = parent.path().join("with space");
    let cluster = Cluster::start(&dir).await.unwrap();
    cluster.create_database("a 'b\"").await.unwrap();
    cluster.create_database("a 'b\"").await.unwrap();
    assert_eq!(ask(&cluster, "a 'b\"", "CREATE TABLE t AS SELECT 1").await, "SELECT 1");
    assert_eq!(ask(&cluster, "postgres", "SHOW fsync").await, "on");
    assert_eq!(ask(&cluster, "postgres", "SHOW listen_addresses").await, "");
    assert!(matches!(Cluster::start(&dir).await, Err(ClusterError::InUse { .. })));
    let started = ask(&cluster, "postgres", "SELECT pg_postmaster_start_time()").await;

    // As after a kill -9: the server still runs.
    drop(cluster);
    let cluster = Cluster::start(&dir).await.unwrap();
    assert_eq!(ask(&cluster, "postgres", "SELECT pg_postmaster_start_time()").await, started);
    cluster.stop().await.unwrap();

    let cluster = Cluster::start(&dir).await.unwrap();
    assert_ne!(ask(&cluster, "postgres", "SELECT pg_postmaster_start_time()").await, started);
    assert_eq!(ask(&cluster, "a 'b\"", "SELECT count(*) FROM t").await, "1");
    cluster.drop_database("a 'b\"").await.unwrap();
    let left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'a %'";
    assert_eq!(ask(&cluster, "postgres", left).await, "0");
    cluster.stop().await.unwrap();

    std::fs::write(dir.join("data/PG_VERSION"), "9\n").unwrap();
    let error = Cluster::start(&dir).await.unwrap_err();
    assert!(matches!(error, ClusterError::VersionChanged { .. }), "{error}");
}

#[tokio::test]
async fn a_temporary_cluster_leaves_nothing() {
    let cluster = Cluster::start_temporary().await.unwrap();
    assert_eq!(ask(&cluster, "postgres", "SHOW fsync").await, "off");
    let dir = cluster.data.parent().unwrap().to_owned();
    cluster.stop().await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_dropped_temporary_cluster_goes_too() {
    let cluster = Cluster::start_temporary().await.unwrap();
    let dir = cluster.data.parent().unwrap().to_owned();
    drop(cluster);
    let gone = async {
        while dir.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_shows_the_log() {
    let parent = open_dir();
    let dir = parent.path().join("x");
    Cluster::start(&dir).await.unwrap().stop().await.unwrap();
    let conf = dir.join("data/postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, text + "no_such_setting = 1\n").unwrap();
    let error = Cluster::start(&dir).await.unwrap_err().to_string();
    assert!(error.contains("pg_ctl") && error.contains("no_such_setting"), "{error}");
}

#[test]
fn a_long_path_gets_a_short_socket() {
    let long = PathBuf::from("/").join("x".repeat(120));
    assert!(socket_dir(&long).starts_with("/tmp"));
    assert_eq!(socket_dir(Path::new("/var/lib/x")), Path::new("/var/lib/x/run"));
}

#[test]
fn values_are_quoted() {
    assert_eq!(quote_value("fleet"), "fleet");
    assert_eq!(quote_value("/a b"), "'/a b'");
    assert_eq!(quote_value("a'\\"), "'a\\'\\\\'");
}
