//! A replica dies in the middle of a run; another one follows on.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use agent_fleet::{
    config,
    execution::{ExecError, Executor, InvalidTarget, LocalExecutor, Output, Script, SshExecutor},
    model::{ExecutionMode as Mode, Lease, SessionId, TaskId},
    store::{HeldLease, HostListing, Outcome},
};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::{
    dispatch::{QUICK, dir, local},
    support::{
        db::Db,
        eventually,
        faults::Faults,
        fleet,
        host::{SshHost, is_alive, output, until_gone},
        node::Node,
    },
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
    /// It arrives all the same; only nothing is heard of it.
    arrives: bool,
    /// The connection breaks at once, and nobody knows what became of the start.
    breaks: bool,
}

impl Hanging {
    /// What makes it for each host.
    fn make(
        held: &Arc<Mutex<Option<Script>>>,
        arrives: bool,
        breaks: bool,
    ) -> impl Fn(&config::Host, &Path) -> Result<Arc<dyn Executor>, InvalidTarget> + Send + Sync + use<>
    {
        let held = Arc::clone(held);
        move |entry, dir| {
            let inner = Arc::new(SshExecutor::new(entry, dir)?);
            let own = Self { inner, held: Arc::clone(&held), arrives, breaks };
            Ok(Arc::new(own) as Arc<dyn Executor>)
        }
    }
}

impl Executor for Hanging {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        Box::pin(async move {
            // Only a start has a prompt to send.
            if script.stdin.is_empty() {
                return self.inner.exec(script).await;
            }
            *self.held.lock().unwrap() = Some(script.clone());
            if self.arrives {
                self.inner.exec(script).await?;
            }
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
    let host = SshHost::start("cat >/dev/null; echo done").await;
    let db = Db::new().await;
    let held: Arc<Mutex<Option<Script>>> = Arc::default();
    let make = Hanging::make(&held, false, breaks);
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
    assert_eq!(output(&b, &task).await, "done\n");
    db.check_history().await;
    b.stop().await;
}

#[tokio::test]
async fn a_run_keeps_its_time_limit_with_a_replica_that_has_another() {
    let host = SshHost::start("cat >/dev/null; until [ -e ~/go ]; do sleep 0.1; done").await;
    let db = Db::new().await;
    let toml = |limit: &str| format!("{}timeout = \"{limit}\"\n", host.toml);
    let make = Hanging::make(&Arc::default(), true, false);
    let a = Node::start_with(&db, "a", &toml("2h"), &make).await;
    let id = a.create("t", &["agent:code"]).await;
    eventually("it has started", async || (host.starts() == 1).then_some(())).await;
    let b = Node::start(&db, "b", &toml("1s")).await;
    b.until_host("h1", "online").await;
    a.replica.shutdown.trigger();
    db.execute(
        "update fleet.sessions set ended_at = now(), end_reason = 'silent' where kind = 'replica' and subject = 'a';
         notify fleet_wake, 'orphaned'",
    )
    .await;
    // Its time begins now: nobody knew before that it runs.
    assert_eq!(b.until(&id, "running").await["lease"], 2);
    let left = "select extract(epoch from deadline_at - now())::bigint from fleet.tasks";
    let left = db.count(left).await;
    assert!((7000..=7200).contains(&left), "{left} s");
    host.touch("go");
    b.until(&id, "completed").await;
    db.check_history().await;
    b.stop().await;
}

#[tokio::test]
async fn a_run_that_another_one_of_its_task_has_replaced_is_ended() {
    let cli = "cat >/dev/null; kill -0 $(cat ~/leader.1) 2>/dev/null && touch ~/both
               echo $$ >~/leader.$AGENT_FLEET_ATTEMPT; until [ -e ~/go ]; do sleep 0.1; done";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let a = host.node(&db, "a", "").await;
    let body = json!({"title": "t", "labels": ["agent:code"], "max_retries": 1});
    let id = a.must("/api/v1/tasks", body).await["task_id"].as_str().unwrap().to_owned();
    let first = host.pid("leader.1").await;
    a.until(&id, "running").await;
    let row = &db.rows("select task_id, lease, holder from fleet.tasks", &[]).await[0];
    let held = HeldLease {
        task_id: TaskId(row.get(0)),
        lease: Lease(row.get(1)),
        holder: SessionId(row.get(2)),
    };
    // It is taken for lost and run again before whoever follows it hears of that.
    fleet::end(&a.replica.store, held, Outcome::Lost).await;
    a.replica.wake_ready();
    let second = host.pid("leader.2").await;
    a.until(&id, "running").await;
    a.replica.wake_revoked();
    until_gone(first).await;
    assert!(is_alive(second));
    assert!(!host.file("both").exists(), "they worked in one folder");
    host.touch("go");
    let task = a.until(&id, "completed").await;
    assert_eq!((&task["attempt"], &task["lease"]), (&json!(2), &json!(2)), "{task}");
    db.check_history().await;
    a.stop().await;
}

/// `h` is there, `g` is here, and both are called localhost.
#[tokio::test]
async fn nobody_looks_at_a_localhost_host_of_another_machine() {
    let (db, dir, faults) = (Db::new().await, dir(), Faults::default());
    let store = db.store();
    let there = [fleet::host("h", &["agent:x"], 2)];
    fleet::replica(&store, "lives", &there).await;
    let (dead, slots) = fleet::replica(&store, "dead", &there).await;
    fleet::create(&store, fleet::task(&["agent:x"], Mode::Undecided), 1).await;
    let held = fleet::push(&store, dead, &[slots["h"]]).await[0];
    store.end_session(dead, "silent").await.unwrap();

    faults.set_down(true);
    let of_h = faults.make();
    let make = move |entry: &config::Host, dir: &Path| match entry.host_id.as_str() {
        "h" => of_h(entry, dir),
        _ => Ok(Arc::new(LocalExecutor::new()) as Arc<dyn Executor>),
    };
    let h = local(&dir, QUICK, 1, &["agent:x"]);
    let (_, g) = h.split_once("[[hosts]]").unwrap();
    let g = g.replace("\"h\"", "\"g\"").replace("agent:x", "agent:y");
    let toml = format!("[dispatch]\ninterval = \"200ms\"\n{h}[[hosts]]{g}");
    let node = Node::start_with(&db, "r", &toml, &make).await;
    node.until_host("g", "online").await;
    let theirs = node.create("theirs", &["agent:x"]).await;
    db.execute("notify fleet_wake, 'orphaned'").await;
    for _ in 0..3 {
        let ours = node.create("ours", &["agent:y"]).await;
        node.until(&ours, "completed").await;
    }
    assert_eq!(faults.refused(), 0, "it has been looked at");
    let task = node.task(&theirs).await;
    assert_eq!((&task["status"], &task["lease"]), (&json!("created"), &json!(0)));
    assert!(store.check_lease(held.task_id).await.unwrap().unwrap().is_held_by(&held));
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_run_called_off_whose_task_an_agent_has_by_now_is_ended() {
    let host = SshHost::start("cat >/dev/null; echo $$ >~/leader; exec sleep 1000").await;
    let db = Db::new().await;
    // No probe comes by and clears up.
    let node = host.node(&db, "a", "[dispatch]\ninterval = \"1h\"\n").await;
    node.register("p", &["agent:code"], 1).await;
    let id = node.create("t", &["agent:code"]).await;
    let leader = host.pid("leader").await;
    node.until(&id, "running").await;
    db.execute(&format!("select fleet.cancel('{id}'); select fleet.retry('{id}', 'http_pull')"))
        .await;
    assert_eq!(node.dequeue("p", 20).await.unwrap()["lease"], 2);
    until_gone(leader).await;
    assert_eq!(node.task(&id).await["status"], "assigned");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_localhost_host_is_used_once_the_replica_on_its_other_machine_is_gone() {
    let (db, dir) = (Db::new().await, dir());
    let store = db.store();
    let there = [fleet::host("h", &["agent:x"], 1)];
    let (other, _) = fleet::replica(&store, "there", &there).await;
    let toml = local(&dir, QUICK, 1, &["agent:x"]);
    let node = Node::start(&db, "r", &format!("[dispatch]\ninterval = \"200ms\"\n{toml}")).await;
    let id = node.create("t", &["agent:x"]).await;
    assert_eq!(node.task(&id).await["status"], "created");
    store.end_session(other, "silent").await.unwrap();
    node.until(&id, "completed").await;
    db.check_history().await;
    node.stop().await;
}
