//! A replica that is told to stop: it takes nothing on, serves what is under way, and is gone in good time.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::support::{
    db::Db,
    eventually,
    forge::{Issue, SECRET, post, sign},
    host::SshHost,
    node::Node,
    program::{Program, Serve, system},
    sshd::free_port,
};

const OPEN: &str = "[auth]\nmode = \"open\"\n[dispatch]\ninterval = \"1s\"\n";

async fn register(url: &str, agent: &str) {
    let body = json!({"agent_id": agent, "agent_type": "t", "hostname": "h", "capabilities": []});
    let request = reqwest::Client::new().post(format!("{url}/api/v1/agents/register")).json(&body);
    assert!(request.send().await.unwrap().status().is_success());
}

fn dequeue(url: &str, agent: &str) -> reqwest::RequestBuilder {
    let body = json!({"agent_id": agent, "wait_secs": 50});
    reqwest::Client::new().post(format!("{url}/api/v1/tasks/dequeue")).json(&body)
}

#[tokio::test]
async fn a_replica_that_drains_serves_all_but_dequeue_until_its_listener_closes() {
    let db = Db::new().await;
    // Longer than the test: what it sees, it sees while the replica drains.
    let toml = format!("{OPEN}[server]\ndrain_grace = \"1h\"\n");
    let mut serve = Serve::start(db.url(), "a", &toml);
    serve.ready().await;
    register(&serve.url, "waits").await;
    let poll = tokio::spawn(dequeue(&serve.url, "waits").send());
    let sign_of_life = "select count(*) from fleet.sessions where last_heartbeat_at > started_at and kind = 'agent'";
    eventually("the poll waits", async || (db.count(sign_of_life).await == 1).then_some(())).await;
    serve.program.signal("TERM");
    assert_eq!(poll.await.unwrap().unwrap().status(), StatusCode::NO_CONTENT);
    let http = reqwest::Client::new();
    let ready = http.get(format!("{}/readyz", serve.url)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.headers()["connection"], "close");
    let told: Value = ready.json().await.unwrap();
    assert_eq!(
        (&told["database"], &told["draining"]),
        (&json!("ok"), &json!("this replica stops"))
    );
    let refused = dequeue(&serve.url, "waits").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let beat = json!({"agent_id": "waits"});
    let beat = http.post(format!("{}/api/v1/agents/heartbeat", serve.url)).json(&beat);
    assert_eq!(beat.send().await.unwrap().status(), StatusCode::OK);
    let create = http.post(format!("{}/api/v1/tasks", serve.url)).json(&json!({"title": "t"}));
    assert_eq!(create.send().await.unwrap().status(), StatusCode::CREATED);
    // It has not stopped, and a second signal ends it.
    assert!(!serve.program.has_ended());
    serve.program.signal("TERM");
    assert_eq!(serve.program.ended().await.code(), Some(1));
    let claimed = db.count("select count(*) from fleet.tasks where status <> 'created'").await;
    assert_eq!(claimed, 0, "it took work on while it drained");
}

#[tokio::test]
async fn clients_that_do_nothing_do_not_delay_its_end() {
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", OPEN);
    serve.ready().await;
    let address = serve.url.strip_prefix("http://").unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut read = [0; 1024];
    assert!(idle.read(&mut read).await.unwrap() > 0);
    serve.program.signal("TERM");
    assert!(serve.program.ended().await.success());
    let said = serve.program.stderr();
    assert!(!said.contains("still open") && !said.contains("still ran"), "{said}");
    assert_eq!(silent.read(&mut read).await.unwrap(), 0);
    assert_eq!(idle.read(&mut read).await.unwrap(), 0);
}

#[tokio::test]
async fn with_drain_wait_a_run_ends_under_the_replica_that_began_it() {
    let host = SshHost::start(
        "cat >/dev/null; echo $$ >~/pid; while [ ! -e ~/go ]; do sleep 0.05; done; echo done",
    )
    .await;
    let db = Db::new().await;
    let toml = format!("{OPEN}{}", host.toml);
    let mut serve = Serve::start_on(free_port(), db.url(), "a", &toml, &["--drain-wait", "10m"]);
    serve.ready().await;
    let observer = Node::start(&db, "observer", "").await;
    observer.until_host("h1", "online").await;
    let id = observer.create("runs", &["agent:code"]).await;
    host.pid("pid").await;
    observer.until(&id, "running").await;
    // Another replica that could take the run over, and does not.
    let other = host.node(&db, "b", "").await;
    other.until_host("h1", "online").await;
    serve.program.signal("TERM");
    serve.program.until_said("draining").await;
    host.touch("go");
    let task = observer.until(&id, "completed").await;
    assert_eq!((&task["lease"], &task["attempt"]), (&json!(1), &json!(1)));
    assert!(serve.program.ended().await.success(), "{}", serve.program.stderr());
    assert_eq!(host.starts(), 1);
    db.check_history().await;
    for node in [observer, other] {
        node.stop().await;
    }
}

/// `HAProxy` in front of these ports, as docs/operations.md has it, only quicker.
fn haproxy(dir: &Path, listen: u16, servers: &[u16]) -> Program {
    let mut text = format!(
        "global\n    stats socket {}\ndefaults\n    mode http\n    timeout connect 2s\n    timeout client 75s\n    \
         timeout server 75s\nfrontend front\n    bind 127.0.0.1:{listen}\n    default_backend fleet\nbackend fleet\n    \
         option httpchk GET /readyz\n    option redispatch\n    default-server check inter 100ms fall 2 rise 1\n",
        dir.join("stats").display()
    );
    for port in servers {
        text.push_str(&format!("    server s{port} 127.0.0.1:{port}\n"));
    }
    let path = dir.join("haproxy.cfg");
    fs::write(&path, text).unwrap();
    let mut command = Command::new(system("haproxy"));
    command.arg("-db").arg("-f").arg(&path).stdin(Stdio::null());
    Program::start(command)
}

/// What `HAProxy` thinks of a server.
async fn is_up(dir: &Path, port: u16) -> Option<bool> {
    let mut stream = UnixStream::connect(dir.join("stats")).await.ok()?;
    stream.write_all(b"show stat\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let line = text.lines().find(|line| line.starts_with(&format!("fleet,s{port},")))?;
    Some(line.split(',').nth(17)? == "UP")
}

#[tokio::test]
async fn deliveries_during_a_rolling_restart_behind_haproxy_all_arrive() {
    let db = Db::new().await;
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let toml = format!(
        "{OPEN}[server]\ndrain_grace = \"1500ms\"\n[forgejo]\nwebhook_secret = \"{SECRET}\"\n"
    );
    let ports = [free_port(), free_port(), free_port()];
    let start = |port: u16| Serve::start_on(port, db.url(), &format!("r{port}"), &toml, &[]);
    let mut replicas: Vec<(u16, Serve)> = ports.iter().map(|port| (*port, start(*port))).collect();
    for (_, replica) in &mut replicas {
        replica.ready().await;
    }
    let front = free_port();
    let _haproxy = haproxy(dir.path(), front, &ports);
    for port in ports {
        eventually("HAProxy sees it", async || is_up(dir.path(), port).await?.then_some(())).await;
    }
    // A forge that delivers until it is told to stop, each once.
    let url = format!("http://127.0.0.1:{front}");
    let stop = tokio_util::sync::CancellationToken::new();
    let forge = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut answers = Vec::new();
            let mut sent = tokio::task::JoinSet::new();
            for number in 1.. {
                if stop.is_cancelled() {
                    break;
                }
                let delivery = Issue::new(number).delivery("opened");
                let url = url.clone();
                sent.spawn(async move {
                    let mut headers = delivery.headers();
                    headers.push(("x-forgejo-signature", sign(SECRET, &delivery.body)));
                    post(&url, &headers, delivery.body.clone()).await.0
                });
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            while let Some(status) = sent.join_next().await {
                answers.push(status.unwrap());
            }
            answers
        }
    });
    for (port, replica) in &mut replicas {
        replica.program.signal("TERM");
        assert!(replica.program.ended().await.success(), "{}", replica.program.stderr());
        *replica = start(*port);
        replica.ready().await;
        eventually("HAProxy sees it", async || is_up(dir.path(), *port).await?.then_some(())).await;
    }
    stop.cancel();
    let answers = forge.await.unwrap();
    assert!(answers.len() > 30, "{}", answers.len());
    let refused: Vec<_> = answers.iter().filter(|s| **s != StatusCode::ACCEPTED).collect();
    assert!(refused.is_empty(), "{} of {}: {refused:?}", refused.len(), answers.len());
    let stored = db.count("select count(*) from fleet.webhook_deliveries").await;
    let tasks = db.count("select count(*) from fleet.tasks").await;
    let sent = i64::try_from(answers.len()).unwrap();
    assert_eq!((stored, tasks), (sent, sent), "none is missing");
    db.check_history().await;
}
