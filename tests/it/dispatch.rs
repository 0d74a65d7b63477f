//! Phase 1 and dequeue race for tasks: what is pushed, what is pulled, what waits. Runs are real, on this machine.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{db::Db, eventually, faults::Faults, node::Node};

/// A replica's configuration with one local host, `h`, whose CLI is this script.
pub(crate) fn local(dir: &TempDir, script: &str, slots: u32, capabilities: &[&str]) -> String {
    format!(
        "[cli.ok]\ncommand = [\"sh\", \"-c\", {script:?}]\n\
         [[hosts]]\nhost_id = \"h\"\nhostname = \"localhost\"\nwork_dir = {work_dir:?}\n\
         agents = [{{ agent_type = \"ok\", max_concurrency = {slots}, capabilities = {capabilities:?} }}]\n",
        work_dir = dir.path().to_str().unwrap(),
    )
}

/// Ends at once.
pub(crate) const QUICK: &str = "cat >/dev/null; echo done";

pub(crate) fn dir() -> TempDir {
    tempfile::Builder::new().prefix("dispatch").tempdir_in("/tmp").unwrap()
}

/// Ends when a file is there.
fn until_file(file: &std::path::Path) -> String {
    format!("cat >/dev/null; while [ ! -e {} ]; do sleep 0.05; done", file.display())
}

async fn types(db: &Db, task: &str) -> Vec<String> {
    let rows = db
        .client
        .query(
            "select type from fleet.task_events where task_id = $1::text::uuid order by event_id",
            &[&task],
        )
        .await
        .unwrap();
    rows.iter().map(|r| r.get(0)).collect()
}

#[tokio::test]
async fn a_match_is_pushed_to_its_host_and_completed() {
    let (db, dir) = (Db::new().await, dir());
    let node = Node::start(&db, "r", &local(&dir, QUICK, 1, &["agent:code"])).await;
    let id = node.create("match", &["agent:code", "bug"]).await;
    let task = node.until(&id, "completed").await;
    assert_eq!(task["execution_mode"], "ssh_cli");
    assert_eq!((&task["lease"], &task["attempt"]), (&json!(1), &json!(1)));
    assert_eq!((&task["assigned_host"], &task["summary"]), (&json!("h/ok"), &json!("done")));
    assert_eq!(types(&db, &id).await, ["created", "claimed", "started", "completed"]);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn no_match_stays_undecided() {
    let (db, dir) = (Db::new().await, dir());
    let node = Node::start(&db, "r", &local(&dir, QUICK, 4, &["agent:code"])).await;
    node.until_host("h", "online").await;
    let others = node.create("no match", &["agent:web"]).await;
    let more = node.create("more than it has", &["agent:code", "agent:web"]).await;
    // The dispatcher has come by when what it can serve is done.
    let served = node.create("match", &["agent:code"]).await;
    node.until(&served, "completed").await;
    for id in [others, more] {
        let task = node.task(&id).await;
        assert_eq!(
            (&task["status"], &task["execution_mode"]),
            (&json!("created"), &json!("undecided"))
        );
        assert_eq!(task["waiting_reason"], "no_capable_agent");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_host_that_is_offline_leaves_its_tasks_undecided_until_an_agent_or_it_comes() {
    let (db, dir, faults) = (Db::new().await, dir(), Faults::default());
    faults.set_down(true);
    let toml = local(&dir, QUICK, 4, &["agent:code"])
        + "[dispatch]\ninterval = \"200ms\"\nundecided_grace = \"1s\"\n";
    let node = Node::start_with(&db, "r", &toml, &faults.make()).await;
    let pulled = node.create("for an agent", &["agent:code"]).await;
    let pushed = node.create("for the host", &["agent:code"]).await;
    node.until_host("h", "offline").await;
    // Longer than the grace: phase 2 has looked at them, and left them.
    eventually("the grace is over", async || {
        let old = db
            .count("select count(*) from fleet.tasks where ready_at < now() - interval '2 s'")
            .await;
        (old == 2).then_some(())
    })
    .await;
    let task = node.task(&pulled).await;
    assert_eq!(
        (&task["status"], &task["execution_mode"]),
        (&json!("created"), &json!("undecided"))
    );
    assert_eq!(task["waiting_reason"], "host_offline");
    node.register("a", &["agent:code"], 1).await;
    let task = node.dequeue("a", 5).await.unwrap();
    assert_eq!(task["task_id"], pulled.as_str());
    assert_eq!(task["execution_mode"], "http_pull");
    assert_eq!(node.complete(&task, "a").await.0.as_u16(), 200);
    faults.set_down(false);
    assert_eq!(node.until(&pushed, "completed").await["execution_mode"], "ssh_cli");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_host_that_is_full_leaves_the_next_task_undecided() {
    let (db, dir) = (Db::new().await, dir());
    let file = dir.path().join("go");
    let node = Node::start(&db, "r", &local(&dir, &until_file(&file), 1, &[])).await;
    let first = node.create("first", &[]).await;
    node.until(&first, "running").await;
    let second = node.create("second", &[]).await;
    let third = node.create("third", &[]).await;
    let task = node.task(&second).await;
    assert_eq!(
        (&task["status"], &task["execution_mode"]),
        (&json!("created"), &json!("undecided"))
    );
    // An agent need not wait for the host.
    node.register("a", &[], 1).await;
    let task = node.dequeue("a", 5).await.unwrap();
    assert_eq!(task["task_id"], second.as_str());
    node.complete(&task, "a").await;
    assert_eq!(node.task(&third).await["execution_mode"], "undecided");
    std::fs::write(&file, "").unwrap();
    for id in [&first, &third] {
        assert_eq!(node.until(id, "completed").await["execution_mode"], "ssh_cli");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_mixed_fleet_works_off_what_each_side_can() {
    let (db, dir) = (Db::new().await, dir());
    let toml = local(&dir, QUICK, 4, &["agent:code"])
        + "[dispatch]\ninterval = \"200ms\"\nundecided_grace = \"500ms\"\n";
    let node = Node::start(&db, "r", &toml).await;
    node.until_host("h", "online").await;
    node.register("a", &["agent:web"], 2).await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(node.create("mixed", &[["agent:code", "agent:web"][n % 2]]).await);
    }
    for _ in 0..6 {
        let task = eventually("there is work", async || node.dequeue("a", 2).await).await;
        assert_eq!(node.complete(&task, "a").await.0.as_u16(), 200);
    }
    for (n, id) in ids.iter().enumerate() {
        let task = node.until(id, "completed").await;
        assert_eq!(task["execution_mode"], ["ssh_cli", "http_pull"][n % 2]);
        assert_eq!((&task["attempt"], &task["lease"]), (&json!(1), &json!(1)));
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_dequeue_of_an_undecided_task_answers_200_and_leaves_it_http_pull() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &["agent:code"], 1).await;
    let created = node.must("/api/v1/tasks", json!({"title": "t", "labels": ["agent:code"]})).await;
    assert_eq!(created["execution_mode"], "undecided", "the default");
    let (status, task) =
        node.post("/api/v1/tasks/dequeue", json!({"agent_id": "a", "wait_secs": 0})).await;
    assert_eq!(status.as_u16(), 200);
    assert_eq!(task["execution_mode"], "http_pull");
    assert_eq!(task["status"], "assigned");
    let id = created["task_id"].as_str().unwrap();
    assert_eq!(node.task(id).await["execution_mode"], "http_pull");
    assert_eq!(node.complete(&task, "a").await.1["execution_mode"], "http_pull");
    db.check_history().await;
    node.stop().await;
}

/// As before `undecided` existed.
#[tokio::test]
async fn ssh_cli_is_only_ever_dispatched_and_http_pull_only_ever_dequeued() {
    let (db, dir, faults) = (Db::new().await, dir(), Faults::default());
    faults.set_down(true);
    let toml =
        local(&dir, QUICK, 9, &[]) + "[dispatch]\ninterval = \"200ms\"\nundecided_grace = \"1h\"\n";
    let node = Node::start_with(&db, "r", &toml, &faults.make()).await;
    node.register("a", &[], 9).await;
    let create = async |mode: &str| -> String {
        let task: Value =
            node.must("/api/v1/tasks", json!({"title": mode, "execution_mode": mode})).await;
        assert_eq!(task["execution_mode"], mode);
        task["task_id"].as_str().unwrap().to_owned()
    };
    let pushed = create("ssh_cli").await;
    assert!(node.dequeue("a", 1).await.is_none(), "an agent never gets an ssh_cli task");
    let pulled = create("http_pull").await;
    faults.set_down(false);
    assert_eq!(node.until(&pushed, "completed").await["assigned_host"], "h/ok");
    // The host is idle, and has been: it never gets an http_pull task.
    let task = node.task(&pulled).await;
    assert_eq!((&task["status"], &task["lease"]), (&json!("created"), &json!(0)));
    let task = node.dequeue("a", 0).await.unwrap();
    assert_eq!(task["task_id"], pulled.as_str());
    assert_eq!(node.complete(&task, "a").await.1["status"], "completed");
    assert_eq!(types(&db, &pulled).await, ["created", "claimed", "completed"]);
    db.check_history().await;
    node.stop().await;
}

/// The host answered its probe, and is gone when the run is to be started.
#[tokio::test]
async fn a_task_whose_only_host_died_before_its_run_is_pulled_by_an_agent() {
    let (db, dir, faults) = (Db::new().await, dir(), Faults::default());
    let toml = local(&dir, QUICK, 1, &["agent:code"])
        + "[dispatch]\ninterval = \"1h\"\nundecided_grace = \"1h\"\n";
    let node = Node::start_with(&db, "r", &toml, &faults.make()).await;
    node.until_host("h", "online").await;
    faults.set_down(true);
    let id = node.create("t", &["agent:code"]).await;
    eventually("the start was refused", async || (faults.refused() > 0).then_some(())).await;
    node.until_host("h", "offline").await;
    node.register("a", &["agent:code"], 1).await;
    let task = eventually("an agent has it", async || node.dequeue("a", 2).await).await;
    assert_eq!(task["task_id"], id.as_str());
    assert_eq!(task["execution_mode"], "http_pull");
    assert_eq!((&task["lease"], &task["attempt"]), (&json!(2), &json!(1)), "no failed attempt");
    assert_eq!(node.complete(&task, "a").await.1["status"], "completed");
    assert_eq!(
        types(&db, &id).await,
        ["created", "claimed", "released", "due", "claimed", "completed"]
    );
    db.check_history().await;
    node.stop().await;
}
