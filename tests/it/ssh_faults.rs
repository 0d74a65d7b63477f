//! Runs over SSH that fail, hang, are called off, or lose their host for a while.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use agent_fleet::execution::{ExecError, Executor, Output, Script, SshExecutor};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually,
    host::{SshHost, entry, is_alive, output, until_gone},
    node::Node,
    sshd::Sshd,
};

async fn end(db: Db, nodes: impl IntoIterator<Item = Node>) {
    db.check_history().await;
    for node in nodes {
        node.stop().await;
    }
}

async fn create(node: &Node, more: Value) -> String {
    let mut body = json!({"title": "x", "labels": ["agent:code"]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    node.must("/api/v1/tasks", body).await["task_id"].as_str().unwrap().to_owned()
}

fn events<'t>(task: &'t Value, event: &str) -> Vec<&'t Value> {
    task["events"].as_array().unwrap().iter().filter(|e| e["type"] == event).collect()
}

#[tokio::test]
async fn a_cli_that_fails_is_tried_again_and_then_the_task_has_failed() {
    let host = SshHost::start(
        "cat >/dev/null; ls; touch was.$AGENT_FLEET_ATTEMPT; echo sorry >&2; exit 3",
    )
    .await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, json!({"max_retries": 1})).await;
    let task = node.until(&id, "failed").await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(2), &json!(1)));
    let error = task["error"].as_str().unwrap();
    assert!(error.contains('3') && error.contains("sorry"), "{error}");
    assert_eq!(host.starts(), 2);
    assert_eq!(task["receipts"].as_array().unwrap().len(), 2);
    // The folder is kept over attempts, the output is not mixed.
    assert_eq!(output(&node, &task).await, "was.1\n");
    end(db, [node]).await;
}

#[tokio::test]
async fn a_cli_that_is_not_there_gets_no_task() {
    let host = SshHost::start("cat >/dev/null; echo ran").await;
    let db = Db::new().await;
    // One host with both CLIs, one with none.
    let both = host.toml.replace(
        "agents = [",
        "agents = [{ agent_type = \"none\", max_concurrency = 1, capabilities = [\"agent:none\"] }, ",
    );
    let toml = format!(
        "[cli.none]\ncommand = [\"no-such-cli\"]\noutput = \"raw\"\n{both}\n{}\
         agents = [{{ agent_type = \"none\", max_concurrency = 1, capabilities = [\"agent:none\"] }}]\n",
        entry(&host.sshd, "h2", "known_hosts")
    );
    let node = Node::start(&db, "a", &toml).await;
    let offline = eventually("the empty host is found out", async || {
        let host = node.until_host("h2", "offline").await;
        host["reason"].as_str().is_some_and(|r| r.contains("no-such-cli")).then_some(host)
    })
    .await;
    assert!(offline["reason"].as_str().unwrap().contains("not found"), "{offline}");
    let half = node.until_host("h1", "online").await;
    assert!(
        half["reason"].as_str().unwrap().contains("none: `no-such-cli` is not found"),
        "{half}"
    );
    let waits = node.create("none", &["agent:none"]).await;
    let runs = node.create("demo", &["agent:code"]).await;
    node.until(&runs, "completed").await;
    let task = node.task(&waits).await;
    assert_eq!((&task["status"], &task["lease"]), (&json!("created"), &json!(0)), "{task}");
    end(db, [node]).await;
}

#[tokio::test]
async fn a_host_that_shows_another_key_is_offline() {
    let home = tempfile::tempdir_in("/tmp").unwrap();
    let sshd = Sshd::start(home.path()).await;
    let db = Db::new().await;
    let agents = "agents = [{ agent_type = \"demo\", max_concurrency = 1, capabilities = [\"agent:code\"] }]\n";
    let toml = format!(
        "{}{agents}{}{agents}[cli.demo]\ncommand = [\"sh\"]\noutput = \"raw\"\n",
        entry(&sshd, "changed", "wrong_hosts"),
        entry(&sshd, "unknown", "no_hosts")
    );
    let node = Node::start(&db, "a", &toml).await;
    for (host_id, words) in
        [("changed", "not the one in known_hosts"), ("unknown", "not in known_hosts")]
    {
        eventually(&format!("{host_id} says why"), async || {
            let host = node.until_host(host_id, "offline").await;
            host["reason"].as_str()?.contains(words).then_some(())
        })
        .await;
    }
    let id = node.create("waits", &["agent:code"]).await;
    let task = node.task(&id).await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("created"), &json!(0)));
    end(db, [node]).await;
}

#[tokio::test]
async fn a_start_that_cannot_reach_its_host_is_no_attempt() {
    let mut host = SshHost::start("cat >/dev/null; echo ran").await;
    let db = Db::new().await;
    // It looks once and believes it for an hour.
    let node = host.node(&db, "a", "[dispatch]\ninterval = \"1h\"\nundecided_grace = \"1h\"").await;
    host.sshd.stop();
    let id = create(&node, json!({"max_retries": 0})).await;
    let released = eventually("the task is given back", async || {
        let task = node.task(&id).await;
        (!events(&task, "released").is_empty()).then_some(task)
    })
    .await;
    assert_eq!(
        (&released["attempt"], &released["retry_count"]),
        (&json!(0), &json!(0)),
        "{released}"
    );
    assert!(released["status"] == "scheduled" || released["status"] == "created", "{released}");
    assert_eq!(released["execution_mode"], "undecided");
    let offline = node.until_host("h1", "offline").await;
    assert!(offline["reason"].as_str().unwrap().contains("cannot be reached"), "{offline}");
    host.sshd.start_again().await;
    // Another replica looks anew.
    let other = host.node(&db, "b", "").await;
    let task = other.until(&id, "completed").await;
    assert_eq!((&task["attempt"], host.starts()), (&json!(1), 1));
    end(db, [node, other]).await;
}

#[tokio::test]
async fn a_run_goes_on_while_its_sshd_is_restarted() {
    let cli = "cat >/dev/null; for i in 1 2 3; do echo $i; done; until [ -e ~/away ]; do sleep 0.05; done
               for i in 4 5 6; do echo $i; done; touch ~/said; until [ -e ~/go ]; do sleep 0.05; done; echo 7";
    let mut host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, json!({"max_retries": 0})).await;
    let path = format!("/api/v1/tasks/{id}/logs");
    eventually("three lines are stored", async || {
        (node.get(&path).await.1["next_offset"] == 6).then_some(())
    })
    .await;
    host.sshd.stop();
    host.touch("away");
    eventually("the run spoke while nobody could hear", async || {
        host.file("said").exists().then_some(())
    })
    .await;
    node.until_host("h1", "offline").await;
    assert_eq!(node.task(&id).await["status"], "running");
    host.sshd.start_again().await;
    host.touch("go");
    let task = node.until(&id, "completed").await;
    assert_eq!(output(&node, &task).await, "1\n2\n3\n4\n5\n6\n7\n");
    assert_eq!((&task["attempt"], &task["lease"], host.starts()), (&json!(1), &json!(1), 1));
    end(db, [node]).await;
}

#[tokio::test]
async fn a_run_that_ended_before_its_deadline_is_judged_by_its_exit_however_late_that_is_heard() {
    let cli = "cat >/dev/null; echo one; until [ -e ~/away ]; do sleep 0.05; done; echo two";
    let mut host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, json!({"max_retries": 0})).await;
    let path = format!("/api/v1/tasks/{id}/logs");
    eventually("a line is stored", async || {
        (node.get(&path).await.1["next_offset"] == 4).then_some(())
    })
    .await;
    let task = node.task(&id).await;
    host.sshd.stop();
    host.touch("away");
    eventually("the run has ended while nobody could hear", async || {
        host.run_dir(&task["task_id"], 1).join("exit").exists().then_some(())
    })
    .await;
    // Past the follower's grace, and before the reaper's.
    db.execute("update fleet.tasks set deadline_at = now() - interval '25 s'").await;
    node.until_host("h1", "offline").await;
    host.sshd.start_again().await;
    let task = node.until(&id, "completed").await;
    assert_eq!(output(&node, &task).await, "one\ntwo\n");
    end(db, [node]).await;
}

#[tokio::test]
async fn a_cancelled_run_is_ended_with_its_group_and_its_last_words_are_not_kept() {
    let cli = "cat >/dev/null; trap 'echo too late; echo too late >~/late; exit 0' TERM
               sleep 1000 & echo $! >~/child; echo $$ >~/leader; echo one; wait";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, json!({})).await;
    let (leader, child) = (host.pid("leader").await, host.pid("child").await);
    let path = format!("/api/v1/tasks/{id}/logs");
    eventually("its output is stored", async || {
        (node.get(&path).await.1["next_offset"] == 4).then_some(())
    })
    .await;
    assert!(is_alive(leader) && is_alive(child));
    let task = node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({"reason": "enough"})).await;
    assert_eq!(task["status"], "cancelled");
    until_gone(leader).await;
    until_gone(child).await;
    let run = host.run_dir(&task["task_id"], 1);
    eventually("the run is cleared up", async || run.join("tombstone").exists().then_some(()))
        .await;
    assert!(host.file("late").exists(), "it was asked before it was made");
    assert_eq!(output(&node, &task).await, "one\n");
    let task = node.task(&id).await;
    assert_eq!((&task["status"], &task["receipts"]), (&json!("cancelled"), &json!([])));
    // Its slot is free again, its gate stays shut, and a retry is another run. That one is called off right before its
    // replica stops, and nobody would come back for it.
    for name in ["leader", "child"] {
        fs::remove_file(host.file(name)).unwrap();
    }
    node.must(&format!("/api/v1/tasks/{id}/retry"), json!({})).await;
    let (leader, child) = (host.pid("leader").await, host.pid("child").await);
    node.until(&id, "running").await;
    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    end(db, [node]).await;
    until_gone(leader).await;
    until_gone(child).await;
    assert_eq!(host.starts(), 2);
}

#[tokio::test]
async fn a_run_past_its_time_limit_is_ended_and_tried_again() {
    let cli = "cat >/dev/null; [ $AGENT_FLEET_ATTEMPT = 2 ] && exit 0; echo $$ >~/leader; echo one; exec sleep 1000";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, json!({"timeout_secs": 1, "max_retries": 1})).await;
    let task = node.until(&id, "completed").await;
    until_gone(host.pid("leader").await).await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(2), &json!(1)));
    assert_eq!(events(&task, "timed_out").len(), 1, "{task}");
    let id = create(&node, json!({"timeout_secs": 1, "max_retries": 0})).await;
    let task = node.until(&id, "failed").await;
    assert_eq!(host.starts(), 3);
    assert!(task["error"].is_string(), "{task}");
    end(db, [node]).await;
}

#[tokio::test]
async fn a_run_whose_processes_are_gone_without_an_exit_code_is_a_failed_attempt() {
    let cli = "cat >/dev/null; [ $AGENT_FLEET_ATTEMPT = 2 ] && exit 0; echo one; echo $$ >~/leader; exec sleep 1000";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = create(&node, json!({"max_retries": 1})).await;
    let leader = host.pid("leader").await;
    let task = node.until(&id, "running").await;
    // First who waits for it, then the CLI itself, as a machine out of memory does.
    let runner = fs::read_to_string(host.run_dir(&task["task_id"], 1).join("runner")).unwrap();
    let runner = runner.split_whitespace().next().unwrap().to_owned();
    for pid in [runner, leader.to_string()] {
        assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    }
    let task = node.until(&id, "completed").await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(2), &json!(1)), "{task}");
    assert_eq!(host.starts(), 2);
    end(db, [node]).await;
}

/// Loses every answer to a start, and sends what was sent once more.
#[derive(Debug)]
struct Forgetful {
    inner: SshExecutor,
    starts: Arc<AtomicUsize>,
}

impl Executor for Forgetful {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        Box::pin(async move {
            // Only a start has a prompt to send.
            if script.stdin.is_empty() {
                return self.inner.exec(script).await;
            }
            self.starts.fetch_add(1, Ordering::Relaxed);
            for _ in 0..2 {
                self.inner.exec(script.clone()).await?;
            }
            Err(ExecError::Lost { target: "h1".into(), source: "cut".into() })
        })
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        self.inner.reconnect()
    }
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_is_one_start() {
    let host = SshHost::start("cat >/dev/null; echo ran").await;
    let db = Db::new().await;
    let starts = Arc::new(AtomicUsize::new(0));
    let make = {
        let starts = Arc::clone(&starts);
        move |entry: &agent_fleet::config::Host, dir: &Path| {
            let inner = SshExecutor::new(entry, dir)?;
            Ok(Arc::new(Forgetful { inner, starts: Arc::clone(&starts) }) as Arc<dyn Executor>)
        }
    };
    let node = Node::start_with(&db, "a", &host.toml, &make).await;
    let id = create(&node, json!({})).await;
    let task = node.until(&id, "completed").await;
    assert_eq!((host.starts(), starts.load(Ordering::Relaxed)), (1, 1));
    assert_eq!((&task["attempt"], output(&node, &task).await), (&json!(1), "ran\n".to_owned()));
    let fleet = fs::read_dir(host.run_dir(&task["task_id"], 1).parent().unwrap()).unwrap();
    let runs = fleet.flatten().filter(|e| e.file_name().to_string_lossy().contains('.')).count();
    assert_eq!(runs, 1);
    end(db, [node]).await;
}
