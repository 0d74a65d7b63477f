//! Behind `PgBouncer` in transaction mode: each transaction may be on another connection of the server.

use std::{fs, path::Path, process::Stdio};

use futures_util::future::join_all;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually,
    program::{Program, Serve, system},
    sshd::free_port,
    standby::as_postgres,
};

const SETTINGS: [(&str, &str); 4] = [
    ("statement_timeout", "15s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("client_connection_check_interval", "5s"),
];

/// A value of an address in `key=value` pairs.
fn value<'a>(url: &'a str, key: &str) -> &'a str {
    url.split(' ').find_map(|pair| pair.strip_prefix(&format!("{key}="))).unwrap()
}

/// `PgBouncer` in front of the server of a database, with three connections to it; the database's address through it.
async fn pgbouncer(dir: &Path, db: &Db) -> (Program, String) {
    let port = free_port();
    let (socket, user) = (value(db.url(), "host"), value(db.url(), "user"));
    let text = format!(
        "[databases]\n* = host={socket} port=5432\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 3\n\
         max_client_conn = 200\n",
        dir.join("users").display()
    );
    fs::write(dir.join("users"), format!("\"{user}\" \"\"\n")).unwrap();
    let path = dir.join("pgbouncer.ini");
    fs::write(&path, text).unwrap();
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = as_postgres(system("pgbouncer"));
    command.arg(&path).stdin(Stdio::null());
    let program = Program::start(command);
    let url = format!("postgres://{user}@127.0.0.1:{port}/{}", value(db.url(), "dbname"));
    eventually("PgBouncer answers", async || {
        tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok().map(drop)
    })
    .await;
    (program, url)
}

fn toml(listen_url: &str) -> String {
    format!("[auth]\nmode = \"open\"\n[database]\nlisten_url = \"{listen_url}\"\n")
}

#[tokio::test]
async fn the_settings_that_a_pooler_drops_must_be_the_roles_and_then_all_works() {
    let db = Db::new().await;
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let (_pgbouncer, url) = pgbouncer(dir.path(), &db).await;
    for (setting, value) in SETTINGS {
        let mut without = Serve::start(&url, "without", &toml(db.url()));
        assert_eq!(without.program.ended().await.code(), Some(1), "without {setting}");
        let said = without.program.stderr();
        assert!(said.contains("alter role") && said.contains(setting), "{said}");
        // For the database only: the role is other tests', too.
        let dbname = self::value(db.url(), "dbname");
        db.execute(&format!("alter database {dbname} set {setting} = '{value}'")).await;
        // What PgBouncer has open began before.
        let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                       where datname = current_database() and pid <> pg_backend_pid()";
        db.count(others).await;
    }
    let mut replicas =
        [Serve::start(&url, "a", &toml(db.url())), Serve::start(&url, "b", &toml(db.url()))];
    let http = Client::new();
    for replica in &mut replicas {
        replica.ready().await;
        eventually("it listens", async || {
            let reply = http.get(format!("{}/readyz", replica.url)).send().await.ok()?;
            (reply.json::<Value>().await.ok()?["listener"] == "ok").then_some(())
        })
        .await;
    }
    // Many agents on both, on three connections of the server.
    const TASKS: usize = 60;
    let post = async |replica: usize, path: &str, body: Value| -> (StatusCode, Value) {
        let url = format!("{}/api/v1/{path}", replicas[replica % 2].url);
        let reply = http.post(url).json(&body).send().await.unwrap();
        let status = reply.status();
        let bytes = reply.bytes().await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    };
    let agents = join_all((0..12).map(async |n: usize| {
        let agent = format!("agent-{n}");
        let body =
            json!({"agent_id": agent, "agent_type": "t", "hostname": "h", "capabilities": []});
        let (status, reply) = post(n, "agents/register", body).await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        let mut completed = 0;
        loop {
            let body = json!({"agent_id": agent, "wait_secs": 3});
            let (status, task) = post(n + completed, "tasks/dequeue", body).await;
            if status == StatusCode::NO_CONTENT {
                return completed;
            }
            assert_eq!(status, StatusCode::OK, "{task}");
            let path = format!("tasks/{}/complete", task["task_id"].as_str().unwrap());
            let receipt = json!({"agent_id": agent, "lease": task["lease"], "status": "completed",
                                 "duration_seconds": 1, "summary": "s", "artifacts": []});
            let (status, reply) = post(n, &path, receipt).await;
            assert_eq!(status, StatusCode::OK, "{reply}");
            completed += 1;
        }
    }));
    let creates = join_all((0..TASKS).map(async |n: usize| {
        let (status, reply) = post(n, "tasks", json!({"title": format!("t{n}")})).await;
        assert_eq!(status, StatusCode::CREATED, "{reply}");
    }));
    let (completed, _) = tokio::join!(agents, creates);
    assert_eq!(completed.iter().sum::<usize>(), TASKS);
    db.check_history().await;
    // One whose listener reaches nobody finds by polling what another one creates.
    let nobody = format!("postgres://agent_fleet@127.0.0.1:{}/fleet", free_port());
    let mut deaf = Serve::start(&url, "deaf", &toml(&nobody));
    deaf.ready().await;
    let reply = http.get(format!("{}/readyz", deaf.url)).send().await.unwrap();
    let said: Value = reply.json().await.unwrap();
    assert_ne!(said["listener"], "ok", "{said}");
    let poll = http.post(format!("{}/api/v1/tasks/dequeue", deaf.url));
    let poll = poll.json(&json!({"agent_id": "agent-0", "wait_secs": 30})).send();
    let poll = tokio::spawn(poll);
    eventually("the agent waits", async || {
        let url = format!("{}/metrics", deaf.url);
        let text = http.get(url).send().await.ok()?.text().await.ok()?;
        text.contains("agent_fleet_waiting_polls 1").then_some(())
    })
    .await;
    let (status, made) = post(0, "tasks", json!({"title": "unheard of"})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let task: Value = poll.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(task["task_id"], made["task_id"]);
    for replica in &replicas {
        let said = replica.program.stderr();
        assert!(!said.contains("ERROR") && !said.contains("failed"), "{said}");
    }
}
