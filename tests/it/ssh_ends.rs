//! How runs over SSH come to an end that nobody wished for.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use agent_fleet::execution::{ExecError, Executor, Output, Script, SshExecutor};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{
    db::Db,
    eventually,
    host::{SshHost, is_alive, until_gone},
    node::Node,
};

async fn create(node: &Node, max_retries: u32) -> String {
    let body = json!({"title": "x", "labels": ["agent:code"], "max_retries": max_retries});
    node.must("/api/v1/tasks", body).await["task_id"].as_str().unwrap().to_owned()
}

/// Why the attempt failed that was tried again.
fn reason(task: &Value, event: &str) -> String {
    let events: Vec<&Value> =
        task["events"].as_array().unwrap().iter().filter(|e| e["type"] == event).collect();
    assert_eq!(events.len(), 1, "{task}");
    events[0]["detail"]["reason"].as_str().unwrap().to_owned()
}

async fn end(db: Db, node: Node) {
    db.check_history().await;
    node.stop().await;
}

/// The first attempt goes on for ever, the second succeeds.
const FIRST_HANGS: &str =
    "cat >/dev/null; [ $AGENT_FLEET_ATTEMPT = 2 ] && exit 0; echo $$ >~/leader; exec sleep 1000";

#[tokio::test]
async fn a_run_whose_host_was_rebooted_is_a_failed_attempt() {
    let host = SshHost::start(FIRST_HANGS).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, 1).await;
    let leader = host.pid("leader").await;
    let task = node.until(&id, "running").await;
    // As if the host had booted since: the pid that is alive is a stranger's.
    fs::write(host.run_dir(&task["task_id"], 1).join("boot_id"), "another").unwrap();
    let task = node.until(&id, "completed").await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(2), &json!(1)), "{task}");
    assert!(reason(&task, "failed").contains("rebooted"), "{task}");
    assert!(is_alive(leader), "a process of another boot was signalled");
    let pid = leader.to_string();
    std::process::Command::new("kill").arg(&pid).status().unwrap();
    end(db, node).await;
}

#[tokio::test]
async fn a_run_that_its_host_does_not_end_at_the_deadline_is_ended_by_its_follower() {
    let host = SshHost::start(FIRST_HANGS).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, 1).await;
    let leader = host.pid("leader").await;
    node.until(&id, "running").await;
    db.execute("update fleet.tasks set deadline_at = now() - interval '25 seconds'").await;
    let task = node.until(&id, "completed").await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(2), &json!(1)), "{task}");
    // Not by the reaper, and not before the process was gone.
    let event = task["events"].as_array().unwrap().iter().find(|e| e["type"] == "timed_out");
    assert_eq!(event.unwrap()["actor"], "host:h1/demo", "{task}");
    assert!(!is_alive(leader));
    end(db, node).await;
}

#[tokio::test]
async fn a_run_called_off_while_its_host_is_away_is_ended_when_it_is_back() {
    // Deaf to TERM, with a child that is, too, and nothing to say.
    let cli = "cat >/dev/null; trap '' TERM; exec >&- 2>&-; sh -c 'echo $$ >~/child; while :; do sleep 1; done' &
               echo $$ >~/leader; while :; do sleep 1; done";
    let mut host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, 0).await;
    let (leader, child) = (host.pid("leader").await, host.pid("child").await);
    node.until(&id, "running").await;
    host.sshd.stop();
    node.until_host("h1", "offline").await;
    let task = node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    assert_eq!(task["status"], "cancelled");
    assert!(is_alive(leader) && is_alive(child));
    host.sshd.start_again().await;
    until_gone(leader).await;
    until_gone(child).await;
    let run = host.run_dir(&task["task_id"], 1);
    eventually("the run is a tombstone", async || run.join("tombstone").exists().then_some(()))
        .await;
    end(db, node).await;
}

/// What the first start comes to.
#[derive(Debug, Clone)]
enum First {
    /// It is sent when told to.
    Waits(Arc<Notify>, Arc<Notify>),
    /// The wrapper is killed right behind the gate, 40 s ago.
    OnlyTheGate,
}

#[derive(Debug)]
struct Starting {
    inner: SshExecutor,
    first: First,
    done: Arc<AtomicBool>,
}

impl Executor for Starting {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        Box::pin(async move {
            // Only a start has a prompt to send.
            if script.stdin.is_empty() || self.done.swap(true, Ordering::SeqCst) {
                return self.inner.exec(script).await;
            }
            match &self.first {
                First::Waits(waits, go) => {
                    waits.notify_one();
                    go.notified().await;
                    self.inner.exec(script).await
                }
                First::OnlyTheGate => {
                    let text = "run=$HOME/work/.agent-fleet/$2/$3.$4; mkdir -p \"$run\"; touch -d '40 seconds ago' \"$run\"";
                    self.inner.exec(Script { text, stdin: Vec::new(), ..script }).await?;
                    Err(ExecError::Lost { target: "h1".into(), source: "cut".into() })
                }
            }
        })
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        self.inner.reconnect()
    }
}

async fn node_with(db: &Db, host: &SshHost, first: First) -> Node {
    let done: Arc<AtomicBool> = Arc::default();
    let make = move |entry: &agent_fleet::config::Host, dir: &Path| {
        let inner = SshExecutor::new(entry, dir)?;
        let executor = Starting { inner, first: first.clone(), done: Arc::clone(&done) };
        Ok(Arc::new(executor) as Arc<dyn Executor>)
    };
    Node::start_with(db, "a", &host.toml, &make).await
}

#[tokio::test]
async fn a_gate_without_a_cli_behind_it_is_a_failed_attempt() {
    let host = SshHost::start("cat >/dev/null; echo ran").await;
    let db = Db::new().await;
    let node = node_with(&db, &host, First::OnlyTheGate).await;
    let id = create(&node, 1).await;
    let task = node.until(&id, "completed").await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(2), &json!(1)), "{task}");
    assert!(reason(&task, "failed").contains("had not begun"), "{task}");
    assert_eq!(host.starts(), 1);
    end(db, node).await;
}

#[tokio::test]
async fn a_run_called_off_before_it_was_known_to_run_is_ended() {
    let host = SshHost::start(FIRST_HANGS).await;
    let db = Db::new().await;
    let (waits, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let node = node_with(&db, &host, First::Waits(Arc::clone(&waits), Arc::clone(&go))).await;
    let id = create(&node, 0).await;
    waits.notified().await;
    let task = node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    go.notify_one();
    let run = host.run_dir(&task["task_id"], 1);
    eventually("the run is a tombstone", async || run.join("tombstone").exists().then_some(()))
        .await;
    if let Ok(pid) = fs::read_to_string(host.file("leader")) {
        until_gone(pid.trim().parse().unwrap()).await;
    }
    assert_eq!(node.task(&id).await["status"], "cancelled");
    end(db, node).await;
}
