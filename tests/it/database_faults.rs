//! What the database may do: go away and come back, fail over, fill up, fall silent, refuse writes.

use std::{path::PathBuf, process::Command, time::Duration};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually,
    node::Node,
    program::Serve,
    proxy::Proxy,
    standby::{Server, as_postgres, connect},
};

const OPEN: &str = "[auth]\nmode = \"open\"\n";

fn create(http: &Client, url: &str, title: &str) -> reqwest::RequestBuilder {
    http.post(format!("{url}/api/v1/tasks")).json(&json!({"title": title}))
}

async fn readyz(http: &Client, url: &str) -> (StatusCode, Value) {
    let reply = http.get(format!("{url}/readyz")).send().await.unwrap();
    (reply.status(), reply.json().await.unwrap())
}

/// Waits until everything is well, the listener included.
async fn until_well(http: &Client, url: &str) {
    eventually("all is well", async || {
        let (status, told) = readyz(http, url).await;
        (status == StatusCode::OK && told["listener"] == "ok").then_some(())
    })
    .await;
}

#[tokio::test]
async fn it_fails_over_to_a_promoted_standby_without_a_restart_of_its_own() {
    let (primary, standby) = Server::start().await.with_standby().await;
    let url = primary.url_with(&standby);
    let mut serve =
        Serve::start_on(crate::support::sshd::free_port(), &url, "a", OPEN, &["--migrate"]);
    serve.ready().await;
    let http = Client::new();
    until_well(&http, &serve.url).await;
    let agent = json!({"agent_id": "x", "agent_type": "t", "hostname": "h", "capabilities": []});
    let register = http.post(format!("{}/api/v1/agents/register", serve.url)).json(&agent);
    assert!(register.send().await.unwrap().status().is_success());
    for n in 0..20 {
        let created = create(&http, &serve.url, &format!("before {n}")).send().await.unwrap();
        assert_eq!(created.status(), StatusCode::CREATED);
    }
    // In good order: what was acknowledged has reached the standby.
    primary.cluster.stop().await.unwrap();
    let refused = create(&http, &serve.url, "between").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let client = connect(&standby.url()).await;
    client.query_one("select pg_promote()", &[]).await.unwrap();
    eventually("it writes to the new primary", async || {
        let reply = create(&http, &serve.url, "after").send().await.unwrap();
        (reply.status() == StatusCode::CREATED).then_some(())
    })
    .await;
    until_well(&http, &serve.url).await;
    let titles: i64 = client
        .query_one("select count(*) from fleet.task_specs where title like 'before %'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(titles, 20);
    let poll = json!({"agent_id": "x", "wait_secs": 10});
    let poll = http.post(format!("{}/api/v1/tasks/dequeue", serve.url)).json(&poll);
    assert_eq!(poll.send().await.unwrap().status(), StatusCode::OK);
    assert!(!serve.program.has_ended());
    drop(client);
    standby.cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_read_only_database_is_told_and_reads_go_on() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    let id = node.create("t", &[]).await;
    db.set_read_only("on").await;
    eventually("it is told", async || {
        let (status, told) = node.get("/readyz").await;
        let is_told = told["database"].as_str()?.contains("read-only");
        (status == StatusCode::SERVICE_UNAVAILABLE && is_told && told["schema"] == "ok")
            .then_some(())
    })
    .await;
    let (status, reply) = node.post("/api/v1/tasks", json!({"title": "t"})).await;
    assert_eq!((status, &reply["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    assert_eq!(node.task(&id).await["status"], "created");
    db.set_read_only("off").await;
    eventually("it takes writes again", async || {
        let (status, _) = node.post("/api/v1/tasks", json!({"title": "t"})).await;
        (status == StatusCode::CREATED).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn connections_that_all_died_are_made_anew_at_once() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    eventually("it listens", async || node.replica.listening().ok()).await;
    // As many connections as the pool may have.
    let reads = futures_util::future::join_all((0..64).map(|_| node.get("/api/v1/tasks")));
    assert!(reads.await.iter().all(|(status, _)| *status == StatusCode::OK));
    for _ in 0..3 {
        assert!(db.end_sessions().await > 1);
        // The first meets one whose end this process has not noticed.
        let reads = futures_util::future::join_all((0..64).map(|_| node.get("/api/v1/tasks")));
        let refused = reads.await.iter().filter(|(status, _)| *status != StatusCode::OK).count();
        assert_eq!(refused, 0);
        eventually("it listens again", async || node.replica.listening().ok()).await;
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn connections_whose_other_side_is_gone_hang_nobody_and_the_listener_is_made_anew() {
    let server = Server::start().await;
    let url = server.url();
    let socket = url.split(' ').find_map(|pair| pair.strip_prefix("host=")).unwrap();
    let proxy = Proxy::start(PathBuf::from(socket).join(".s.PGSQL.5432")).await;
    let through = format!("postgres://agent_fleet@127.0.0.1:{}/fleet", proxy.port);
    let mut serve =
        Serve::start_on(crate::support::sshd::free_port(), &through, "a", OPEN, &["--migrate"]);
    serve.ready().await;
    let http = Client::new();
    until_well(&http, &serve.url).await;
    let direct = connect(&url).await;
    let listeners = async || -> i64 {
        let sql = "select count(*) from pg_stat_activity where query = 'listen fleet_wake'";
        direct.query_one(sql, &[]).await.unwrap().get(0)
    };
    assert_eq!(listeners().await, 1);
    proxy.cut();
    // It may meet a connection that was in use a moment ago; that takes longer, and ends, too.
    let at_once = tokio::spawn(create(&http, &serve.url, "at once").send());
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    // Connections that nobody has used for a moment are asked before they are used.
    let later = create(&http, &serve.url, "later").send().await.unwrap();
    assert_eq!(later.status(), StatusCode::CREATED);
    let ended = tokio::time::timeout(Duration::from_secs(60), at_once).await;
    ended.expect("nobody hangs").unwrap().unwrap();
    // The server does not know yet that the first one is dead.
    eventually("another one listens", async || (listeners().await == 2).then_some(())).await;
    until_well(&http, &serve.url).await;
    assert!(!serve.program.has_ended());
    drop(serve);
    drop(direct);
    server.cluster.stop().await.unwrap();
}

/// A small file system, gone when dropped.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn when_its_disk_is_full_writes_are_refused_and_reads_go_on() {
    let server = Server::start().await;
    let place = server.dir.path().join("small");
    let made = as_postgres("id").arg("-u").output().unwrap().stdout;
    let owner = String::from_utf8(made).unwrap().trim().to_owned();
    std::fs::create_dir(&place).unwrap();
    let mount = Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size=40m,mode=0700,uid={owner},gid={owner}"),
            "tmpfs",
        ])
        .arg(&place)
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("not tested: a small file system can be mounted by root only");
        return;
    }
    let disk = SmallDisk(place.clone());
    let admin = connect(&server.cluster.url("postgres")).await;
    admin
        .batch_execute(&format!("create tablespace small location '{}'", place.display()))
        .await
        .unwrap();
    admin.batch_execute("create database full_disk tablespace small").await.unwrap();
    let url = server.cluster.url("full_disk");
    let mut serve =
        Serve::start_on(crate::support::sshd::free_port(), &url, "a", OPEN, &["--migrate"]);
    serve.ready().await;
    let http = Client::new();
    let first: Value =
        create(&http, &serve.url, "first").send().await.unwrap().json().await.unwrap();
    let client = connect(&url).await;
    client
        .batch_execute(
            "create table ballast (x text); alter table ballast alter x set storage external",
        )
        .await
        .unwrap();
    // Smaller and smaller pieces, until nothing fits.
    for kib in [1024, 64, 8, 1] {
        let fill = format!("insert into ballast select repeat('x', {kib} * 1000)");
        while client.batch_execute(&fill).await.is_ok() {}
    }
    let refused = eventually("a write is refused", async || {
        let reply = create(&http, &serve.url, &"x".repeat(900)).send().await.unwrap();
        (reply.status() != StatusCode::CREATED).then_some(reply)
    })
    .await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["code"], "unavailable", "{error}");
    for path in ["", &format!("/{}", first["task_id"].as_str().unwrap())] {
        let read = http.get(format!("{}/api/v1/tasks{path}", serve.url)).send().await.unwrap();
        assert_eq!(read.status(), StatusCode::OK);
    }
    client.batch_execute("drop table ballast").await.unwrap();
    eventually("there is room again", async || {
        let reply = create(&http, &serve.url, "later").send().await.unwrap();
        (reply.status() == StatusCode::CREATED).then_some(())
    })
    .await;
    assert!(!serve.program.has_ended());
    drop((serve, client, admin));
    server.cluster.stop().await.unwrap();
    drop(disk);
}
