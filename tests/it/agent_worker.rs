//! `agent-fleet agent` as a process, against a replica in this one.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    db::Db,
    eventually,
    host::{output, until_gone},
    node::Node,
    program::{Program, agent_fleet, script},
};

/// A machine with a CLI, on which the agent is started and restarted.
struct Worker {
    home: TempDir,
}

impl Worker {
    /// `cli` is a `sh` script; `$HOME` is the worker's own.
    fn new(cli: &str) -> Self {
        let home = tempfile::Builder::new().prefix("home").tempdir_in("/tmp").unwrap();
        let cli = format!("echo x >>~/starts\n{cli}");
        let command = script(home.path(), "cli.sh", &cli);
        let config = format!("[cli.demo]\ncommand = {command}\noutput = \"raw\"\n");
        fs::write(home.path().join("agent.toml"), config).unwrap();
        Self { home }
    }

    fn start(&self, node: &Node, token: Option<&str>, more: &[&str]) -> Program {
        let path = |name: &str| self.home.path().join(name).into_os_string().into_string().unwrap();
        let (config, work_dir) = (path("agent.toml"), path("work"));
        let mut args = vec!["--config", &config, "agent", "--agent-id", "coder", "--type", "demo"];
        args.extend(["--capability", "agent:code", "--work-dir", &work_dir]);
        args.extend(more);
        let mut command = agent_fleet(&args);
        command.env("HOME", self.home.path()).env("AGENT_FLEET_URL", &node.url);
        if let Some(token) = token {
            command.env("AGENT_FLEET_TOKEN", token);
        }
        Program::start(command)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.home.path().join(name)).unwrap_or_default()
    }

    fn touch(&self, name: &str) {
        fs::write(self.home.path().join(name), "").unwrap();
    }

    async fn pid(&self) -> u32 {
        eventually("the CLI writes its pid", async || {
            self.read("pid").strip_suffix('\n')?.parse().ok()
        })
        .await
    }
}

async fn until_agent(node: &Node, status: &str) -> Value {
    eventually(&format!("the agent is {status}"), async || {
        let (_, agent) = node.get("/api/v1/agents/coder").await;
        (agent["status"] == status).then_some(agent)
    })
    .await
}

#[tokio::test]
async fn it_pulls_a_task_runs_its_cli_and_sends_a_receipt() {
    let worker =
        Worker::new("cat >prompt; env | grep ^AGENT_FLEET_TASK_KEY; pwd; echo all is well");
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    let mut agent = worker.start(&node, None, &[]);
    let body = json!({"title": "x", "body": "$(touch ~/bad) `touch ~/bad`", "labels": ["agent:code"], "key": "k 1"});
    node.must("/api/v1/tasks", body).await;
    let task = node.until("k 1", "completed").await;
    for (field, value) in [
        ("execution_mode", json!("http_pull")),
        ("assigned_agent_id", json!("coder")),
        ("attempt", json!(1)),
    ] {
        assert_eq!(task[field], value, "{field}");
    }
    let folder = worker.home.path().join("work/tasks").join(task["task_id"].as_str().unwrap());
    let expected = format!("AGENT_FLEET_TASK_KEY=k 1\n{}\nall is well\n", folder.display());
    assert_eq!(output(&node, &task).await, expected);
    assert_eq!(task["prompt"], fs::read_to_string(folder.join("prompt")).unwrap());
    assert!(!worker.home.path().join("bad").exists());
    let receipt = &task["receipts"][0];
    assert_eq!((&receipt["status"], &receipt["agent_id"]), (&json!("completed"), &json!("coder")));
    assert!(receipt["summary"].as_str().unwrap().contains("all is well"), "{receipt}");

    // Nothing to do: it takes its leave at once.
    until_agent(&node, "online").await;
    agent.signal("TERM");
    assert!(agent.ended().await.success(), "{}", agent.stderr());
    until_agent(&node, "offline").await;
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn told_to_stop_it_finishes_what_runs() {
    let worker = Worker::new(
        "cat >/dev/null; echo $$ >~/pid; until [ -e ~/go ]; do sleep 0.05; done; echo done",
    );
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    let mut agent = worker.start(&node, None, &[]);
    let (first, second) =
        (node.create("one", &["agent:code"]).await, node.create("two", &["agent:code"]).await);
    worker.pid().await;
    agent.signal("TERM");
    agent.until_said("finishing what runs").await;
    worker.touch("go");
    assert!(agent.ended().await.success(), "{}", agent.stderr());
    let task = node.until(&first, "completed").await;
    assert_eq!(output(&node, &task).await, "done\n");
    // It took nothing new.
    assert_eq!(node.task(&second).await["attempt"], 0);
    until_agent(&node, "offline").await;
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn told_to_stop_at_once_it_gives_back_what_runs() {
    let worker = Worker::new("cat >/dev/null; echo $$ >~/pid; exec sleep 1000");
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    let mut agent = worker.start(&node, None, &["--drain-wait", "0s"]);
    let id = node.create("long", &["agent:code"]).await;
    let pid = worker.pid().await;
    agent.signal("TERM");
    assert!(agent.ended().await.success(), "{}", agent.stderr());
    until_gone(pid).await;
    let task = node.task(&id).await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("created"), &json!(0)), "{task}");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_is_ended_and_the_next_task_taken() {
    let worker =
        Worker::new("cat >/dev/null; [ -e ~/pid ] && exit 0; echo $$ >~/pid; exec sleep 1000");
    let db = Db::new().await;
    let node = Node::start(&db, "a", "[lease]\nheartbeat_interval = \"1s\"\n").await;
    let _agent = worker.start(&node, None, &[]);
    let id = node.create("long", &["agent:code"]).await;
    let pid = worker.pid().await;
    node.until(&id, "running").await;
    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    until_gone(pid).await;
    let next = node.create("next", &["agent:code"]).await;
    node.until(&next, "completed").await;
    let task = node.task(&id).await;
    assert_eq!((&task["status"], &task["receipts"]), (&json!("cancelled"), &json!([])));
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn killed_twice_it_goes_on_with_its_run_and_its_own_token() {
    let worker = Worker::new(
        "cat >/dev/null; echo one; until [ -e ~/go1 ]; do sleep 0.05; done; echo two
         until [ -e ~/go2 ]; do sleep 0.05; done; echo three",
    );
    let db = Db::new().await;
    let auth = "[auth]\nmode = \"token\"\nadmin_token = \"admin-token\"\nenrollment_token = \"enroll-token\"\n";
    let node = Node::start(&db, "a", auth).await;
    let admin = Some("admin-token");
    let body = json!({"title": "x", "labels": ["agent:code"], "key": "k"});
    let (status, _) = node.send(reqwest::Method::POST, "/api/v1/tasks", admin, Some(&body)).await;
    assert!(status.is_success());
    let get = async |path: &str| node.send(reqwest::Method::GET, path, admin, None).await.1;
    let until_said = async |bytes: i64| {
        eventually(&format!("{bytes} bytes are stored"), async || {
            (get("/api/v1/tasks/k/logs").await["next_offset"] == bytes).then_some(())
        })
        .await;
    };
    // Enrolled once; after that it knows its own token.
    let mut agent = worker.start(&node, Some("enroll-token"), &[]);
    until_said(4).await;
    agent.signal("KILL");
    agent.ended().await;
    worker.touch("go1");
    let mut agent = worker.start(&node, None, &[]);
    until_said(8).await;
    agent.signal("KILL");
    agent.ended().await;
    let mut agent = worker.start(&node, None, &[]);
    agent.until_said("going on with a run of before").await;
    worker.touch("go2");
    let task = eventually("the task is completed", async || {
        let task = get("/api/v1/tasks/k").await;
        (task["status"] == "completed").then_some(task)
    })
    .await;
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(1), &json!(0)), "{task}");
    assert_eq!(worker.read("starts"), "x\n");
    let page = get("/api/v1/tasks/k/logs").await;
    let said: String =
        page["items"].as_array().unwrap().iter().map(|i| i["data"].as_str().unwrap()).collect();
    assert_eq!(said, "one\ntwo\nthree\n");
    agent.signal("TERM");
    assert!(agent.ended().await.success());
    // No token stands in what it said.
    let token = worker.read("work/agent-token");
    assert!(!token.trim().is_empty() && !agent.stderr().contains(token.trim()));
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_wrong_enrollment_token_ends_it_with_one_sentence() {
    let worker = Worker::new("exit 0");
    let db = Db::new().await;
    let auth = "[auth]\nmode = \"token\"\nadmin_token = \"admin-token\"\nenrollment_token = \"enroll-token\"\n";
    let node = Node::start(&db, "a", auth).await;
    let mut agent = worker.start(&node, Some("guessed"), &[]);
    assert_eq!(agent.ended().await.code(), Some(1));
    let last = agent.stderr().lines().last().unwrap().to_owned();
    assert!(last.starts_with("agent-fleet: ") && !last.contains("guessed"), "{last}");
    node.stop().await;
}
