//! A replica dies in the middle of a run; another one follows on.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use agent_fleet::{
    execution::{ExecError, Executor, Output, Script, SshExecutor},
    store::HostListing,
};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually, fleet,
    host::{SshHost, output},
    node::Node,
};

const TTL: &str = "[lease]\nreplica_ttl = \"3s\"\n";
/// A line every 0.2 s for five seconds.
const CLI: &str =
    "cat >/dev/null; i=0; while [ $i -lt 25 ]; do i=$((i+1)); echo line $i; sleep 0.2; done";

fn lines() -> String {
    (1..=25).map(|i| format!("line {i}\n")).collect()
}

/// Waits until some output of the task is stored.
async fn until_speaks(node: &Node, id: &str) {
    eventually("its first lines are stored", async || {
        let (_, page) = node.get(&format!("/api/v1/tasks/{id}/logs")).await;
        (page["next_offset"].as_i64()? > 0).then_some(())
    })
    .await;
}

/// What must be true of a run that was taken over once.
async fn check(db: &Db, host: &SshHost, node: &Node, id: &str) -> Value {
    let task = node.until(id, "completed").await;
    assert_eq!((&task["attempt"], &task["lease"]), (&json!(1), &json!(2)), "{task}");
    assert_eq!(host.starts(), 1);
    assert_eq!(output(node, &task).await, lines());
    let runs = db.rows("select run_lease, attempt from fleet.runs", &[]).await;
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].get::<_, i64>(0), runs[0].get::<_, i32>(1)), (1, 1));
    let taken =
        task["events"].as_array().unwrap().iter().filter(|e| e["type"] == "taken_over").count();
    assert_eq!(taken, 1);
    assert_eq!(task["receipts"].as_array().unwrap().len(), 1);
    db.check_history().await;
    task
}

#[tokio::test]
async fn a_run_is_followed_on_when_its_replica_falls_silent() {
    let host = SshHost::start(CLI).await;
    let db = Db::new().await;
    let a = host.node(&db, "a", TTL).await;
    let id = a.create("long", &["agent:code"]).await;
    until_speaks(&a, &id).await;
    // Configured otherwise: a run keeps the command, the parser and the folder that it was started with.
    let toml = host.toml.replace("~/work", "~/elsewhere");
    let (before, _) = toml.split_once("command = ").unwrap();
    let other =
        format!("{TTL}{before}command = [\"sh\", \"-c\", \"exit 9\"]\noutput = \"claude-json\"\n");
    let b = Node::start(&db, "b", &other).await;
    b.until_host("h1", "online").await;
    // Its loops end at once; it says nothing to anybody.
    a.replica.shutdown.trigger();
    check(&db, &host, &b, &id).await;
    b.stop().await;
}

#[tokio::test]
async fn a_run_is_handed_over_when_its_replica_stops_in_good_order() {
    let host = SshHost::start(CLI).await;
    let db = Db::new().await;
    // With a long time to wait for a silent one, which this one is not.
    let a = host.node(&db, "a", "").await;
    let id = a.create("long", &["agent:code"]).await;
    until_speaks(&a, &id).await;
    let b = host.node(&db, "b", "").await;
    a.stop().await;
    check(&db, &host, &b, &id).await;
    b.stop().await;
}

#[tokio::test]
async fn a_run_is_followed_on_when_its_replica_is_killed() {
    let host = SshHost::start(CLI).await;
    let db = Db::new().await;
    let mut a = host.serve(&db, "a", TTL).await;
    // It reaches no host, so it cannot take the run over.
    let b = Node::start(&db, "b", TTL).await;
    b.until_host("h1", "online").await;
    let id = b.create("long", &["agent:code"]).await;
    until_speaks(&b, &id).await;
    a.program.signal("KILL");
    a.program.ended().await;
    assert_eq!(b.task(&id).await["status"], "running");
    let c = host.node(&db, "c", TTL).await;
    let task = check(&db, &host, &c, &id).await;
    assert_eq!(task["assigned_host"], "h1/demo");
    for node in [b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_replica_that_was_only_thought_dead_lets_go_and_signals_nothing() {
    let host = SshHost::start(CLI).await;
    let db = Db::new().await;
    let a = host.node(&db, "a", TTL).await;
    let id = a.create("long", &["agent:code"]).await;
    until_speaks(&a, &id).await;
    // The other follows with the same session table; whichever of the two takes it, there is one run.
    let b = host.node(&db, "b", TTL).await;
    db.execute("update fleet.sessions set ended_at = now(), end_reason = 'silent' where kind = 'replica' and subject = 'a'")
        .await;
    check(&db, &host, &b, &id).await;
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_replica_that_was_cut_off_and_comes_back_lets_go_and_signals_nothing() {
    let cli = "cat >/dev/null; trap 'touch ~/signalled; exit 1' TERM; i=0
               until [ -e ~/go ]; do i=$((i+1)); echo line $i; sleep 0.2; done";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let mut a = host.serve(&db, "a", TTL).await;
    let b = Node::start(&db, "b", TTL).await;
    b.until_host("h1", "online").await;
    let id = b.create("long", &["agent:code"]).await;
    until_speaks(&b, &id).await;
    a.program.signal("STOP");
    let c = host.node(&db, "c", TTL).await;
    eventually("it is taken over", async || (c.task(&id).await["lease"] == 2).then_some(())).await;
    a.program.signal("CONT");
    a.program.until_said("another replica follows this run now").await;
    host.touch("go");
    let task = c.until(&id, "completed").await;
    assert_eq!((&task["attempt"], host.starts()), (&json!(1), 1));
    assert!(!host.file("signalled").exists());
    let text = output(&c, &task).await;
    let expected: String = (1..=text.lines().count()).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text, expected);
    db.check_history().await;
    for node in [b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_run_of_which_nothing_is_left_is_a_failed_attempt() {
    let cli = "cat >/dev/null; [ $AGENT_FLEET_ATTEMPT = 2 ] && exit 0; echo line; exec sleep 1000";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let a = host.node(&db, "a", "").await;
    let id = a.create("long", &["agent:code"]).await;
    until_speaks(&a, &id).await;
    let task = a.until(&id, "running").await;
    a.stop().await;
    // As if its disk had been replaced.
    let run = host.run_dir(&task["task_id"], 1);
    for name in ["runner", "pid"] {
        let pid = fs::read_to_string(run.join(name)).unwrap();
        let pid = pid.split_whitespace().next().unwrap().to_owned();
        assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    }
    fs::remove_dir_all(host.file("work")).unwrap();
    let b = host.node(&db, "b", "").await;
    let task = b.until(&id, "completed").await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(2), &json!(1)), "{task}");
    let failed = task["events"].as_array().unwrap().iter().find(|e| e["type"] == "failed");
    assert_eq!(failed.unwrap()["detail"]["reason"], "nothing is left of its run on the host");
    db.check_history().await;
    b.stop().await;
}

#[tokio::test]
async fn a_localhost_host_belongs_to_the_machine_that_lists_it() {
    let db = Db::new().await;
    let store = db.store();
    let hosts = [fleet::host("h", &["agent:x"], 1)];
    let (here, slots) = fleet::replica(&store, "r1", &hosts).await;
    assert_eq!(slots.len(), 1);
    let there = store.begin_replica("r2", "there", "machine-2", fleet::HOUR).await.unwrap();
    let listing =
        HostListing { replica_id: "r2", session: there, machine: "machine-2", hosts: &hosts };
    assert_eq!(store.upsert_hosts(listing).await.unwrap(), []);
    // Another replica of the same machine may use it.
    assert_eq!(fleet::replica(&store, "r3", &hosts).await.1, slots);
    // When no live replica is there any more, it may move.
    store.end_session(here, "stopped").await.unwrap();
    assert_eq!(store.upsert_hosts(listing).await.unwrap(), []);
    db.execute("update fleet.sessions set ended_at = now() where subject = 'r3'").await;
    assert_eq!(store.upsert_hosts(listing).await.unwrap().len(), 1);
}

/// Holds back every start, as a replica does that hangs at the worst moment, or a network.
#[derive(Debug)]
struct Hanging {
    inner: Arc<SshExecutor>,
    /// The start that was to be sent.
    held: Arc<Mutex<Option<Script>>>,
    /// The connection breaks at once, and nobody knows what became of the start.
    breaks: bool,
}

impl Executor for Hanging {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        Box::pin(async move {
            // Only a start has a prompt to send.
            if script.stdin.is_empty() {
                return self.inner.exec(script).await;
            }
            *self.held.lock().unwrap() = Some(script);
            if self.breaks {
                return Err(ExecError::Lost { target: "h1".into(), source: "cut".into() });
            }
            std::future::pending().await
        })
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        self.inner.reconnect()
    }
}

#[tokio::test]
async fn a_run_that_never_started_is_given_back_and_its_gate_is_shut() {
    is_given_back(false).await;
}

#[tokio::test]
async fn a_start_of_which_nothing_was_heard_is_given_back_when_nothing_came_of_it() {
    is_given_back(true).await;
}

async fn is_given_back(breaks: bool) {
    let host = SshHost::start(CLI).await;
    let db = Db::new().await;
    let held: Arc<Mutex<Option<Script>>> = Arc::default();
    let make = {
        let held = Arc::clone(&held);
        move |entry: &agent_fleet::config::Host, dir: &Path| {
            let inner = Arc::new(SshExecutor::new(entry, dir)?);
            Ok(Arc::new(Hanging { inner, held: Arc::clone(&held), breaks }) as Arc<dyn Executor>)
        }
    };
    let a = Node::start_with(&db, "a", &format!("{TTL}{}", host.toml), &make).await;
    let id = a.create("long", &["agent:code"]).await;
    let start = eventually("its start is on the way", async || held.lock().unwrap().clone()).await;
    if breaks {
        a.until(&id, "running").await;
    }
    let b = host.node(&db, "b", TTL).await;
    a.replica.shutdown.trigger();
    let task = b.until(&id, "completed").await;
    // Leases: claimed by a, taken over by b, claimed anew.
    assert_eq!((&task["attempt"], &task["lease"]), (&json!(1), &json!(3)), "{task}");
    assert_eq!(task["retry_count"], 0);
    assert!(host.run_dir(&task["task_id"], 1).join("closed").exists());
    let types: Vec<&str> =
        task["events"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    let (taken, released) = ("taken_over", "released");
    assert!(types.contains(&taken) && types.contains(&released), "{types:?}");
    // The start of the dead replica arrives at last, and finds the gate shut.
    let late = host.sshd.executor().exec(start).await.unwrap();
    assert!(String::from_utf8(late.stdout).unwrap().contains("exists"));
    assert_eq!(host.starts(), 1);
    assert_eq!(output(&b, &task).await, lines());
    db.check_history().await;
    b.stop().await;
}
