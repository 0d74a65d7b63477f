//! From an issue to a finished run, over a real sshd.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually,
    forge::Issue,
    host::{SshHost, output},
    node::Node,
};

async fn end(db: Db, nodes: impl IntoIterator<Item = Node>) {
    db.check_history().await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn an_issue_is_run_on_a_host_and_completed() {
    let cli = "env | grep ^AGENT_FLEET_ | sort > environment; cat > prompt; pwd; echo done >&2; echo all is well";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let issue = Issue::new(42).body("Please mend the lamp.\n");
    issue.send("opened", &node).await;
    let task = node.until("org/repo#42", "completed").await;
    for (field, value) in [
        ("execution_mode", json!("ssh_cli")),
        ("assigned_host", json!("h1/demo")),
        ("attempt", json!(1)),
        ("retry_count", json!(0)),
        ("error", Value::Null),
    ] {
        assert_eq!(task[field], value, "{field}");
    }
    let folder = host.folder(&task);
    assert!(task["summary"].as_str().unwrap().contains("all is well"), "{task}");
    assert_eq!(output(&node, &task).await, format!("{}\nall is well\n", folder.display()));
    let environment = [
        ("ATTEMPT", "1"),
        ("BRANCH", "task/org%2Frepo%2342"),
        ("CLONE_URL", "https://forge.example/Lighthouse/beacon.git"),
        ("ISSUE_URL", "https://forge.example/Lighthouse/beacon/issues/42"),
        ("REPO", "org/repo"),
        ("TASK_ID", task["task_id"].as_str().unwrap()),
        ("TASK_KEY", "org/repo#42"),
    ];
    let environment: String =
        environment.iter().map(|(name, value)| format!("AGENT_FLEET_{name}={value}\n")).collect();
    assert_eq!(fs::read_to_string(folder.join("environment")).unwrap(), environment);
    let prompt = fs::read_to_string(folder.join("prompt")).unwrap();
    assert_eq!(task["prompt"], prompt);
    assert!(prompt.contains("Please mend the lamp.\n"));
    assert_eq!(host.starts(), 1);
    let events: Vec<&str> =
        task["events"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(events, ["created", "claimed", "started", "completed"]);
    assert_eq!(task["receipts"].as_array().unwrap().len(), 1);
    // What is left on the host keeps the gate shut, and holds no prompt any more.
    let run = host.run_dir(&task["task_id"], 1);
    eventually("the run is a tombstone", async || {
        (run.join("tombstone").exists() && !run.join("prompt").exists()).then_some(())
    })
    .await;
    end(db, [node]).await;
}

#[tokio::test]
async fn a_hostile_issue_arrives_byte_for_byte_and_runs_nothing() {
    let host = SshHost::start("cat > prompt; ls -A").await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let mut body = "'; touch ~/bad; ' \"$(touch ~/bad)\" `touch ~/bad` ${HOME} $((1)) \\\n\n\
                    '\"'\"'\r\n\ttab {prompt_file} %s %n @agent-fleet@ exists\n😀 ü \u{202e}\nEOF\n.\n-e -n\n"
        .to_owned();
    body.push_str(&"'$(touch ~/bad)`\n".repeat((1 << 20) / 17));
    assert!(body.len() > 1_000_000);
    let title = "$(touch ~/bad) `touch ~/bad` '\"; touch ~/bad #";
    let label = "'; touch ~/bad; '";
    let issue = Issue::new(42).title(title).body(&body).labels(&["agent/code", label]);
    issue.send("opened", &node).await;
    let task = node.until("org/repo#42", "completed").await;
    let prompt = fs::read_to_string(host.folder(&task).join("prompt")).unwrap();
    assert!(prompt.contains(&body) && prompt.contains(title) && prompt.contains(label));
    assert_eq!(output(&node, &task).await, "prompt\n", "nothing else is in its folder");
    assert!(!host.file("bad").exists());
    assert_eq!(host.starts(), 1);
    end(db, [node]).await;
}

#[tokio::test]
async fn without_a_host_an_agent_pulls_it() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    node.register("coder", &["agent:code"], 1).await;
    Issue::new(42).send("opened", &node).await;
    let task = node.dequeue("coder", 10).await.unwrap();
    assert_eq!(
        (&task["execution_mode"], &task["key"]),
        (&json!("http_pull"), &json!("org/repo#42"))
    );
    node.complete(&task, "coder").await;
    assert_eq!(node.task("org/repo#42").await["status"], "completed");
    end(db, [node]).await;
}

#[tokio::test]
async fn an_assigned_task_runs_on_its_host() {
    let host = SshHost::start("cat >/dev/null; echo ran").await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    // Two ways to name the host; the tasks could never go there by themselves.
    for target in ["h1", "h1/demo"] {
        let task = node
            .must(
                "/api/v1/tasks",
                json!({"title": "x", "labels": ["agent:other"], "execution_mode": "http_pull"}),
            )
            .await;
        let id = task["task_id"].as_str().unwrap();
        let path = format!("/api/v1/tasks/{id}/assign");
        let (status, reply) = node.post(&path, json!({"agent_id": target})).await;
        assert_eq!((status.as_u16(), &reply["code"]), (400, &json!("capability_mismatch")));
        let assigned = node.must(&path, json!({"agent_id": target, "force": true})).await;
        assert_eq!(assigned["execution_mode"], "ssh_cli");
        let task = node.until(id, "completed").await;
        assert_eq!(task["assigned_host"], "h1/demo");
        assert_eq!(output(&node, &task).await, "ran\n");
    }
    end(db, [node]).await;
}

#[tokio::test]
async fn two_tasks_on_one_host_share_no_folder() {
    // Each goes on only when both are there.
    let cli = "cat >/dev/null; ls -A; echo x > mine; touch ~/here.$AGENT_FLEET_TASK_ID
               until [ $(ls ~/here.* | wc -l) = 2 ]; do sleep 0.05; done; pwd";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(node.create("together", &["agent:code"]).await);
    }
    for id in &ids {
        let task = node.until(id, "completed").await;
        let folder = host.folder(&task);
        // An empty folder, its own.
        assert_eq!(output(&node, &task).await, format!("{}\n", folder.display()));
        assert!(folder.join("mine").exists());
    }
    assert_eq!(host.starts(), 2);
    end(db, [node]).await;
}

#[tokio::test]
async fn output_is_there_while_the_run_goes_on() {
    let cli =
        "echo one; until [ -e ~/go ]; do sleep 0.05; done; printf 'half é'; sleep 0.3; echo ' two'";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = node.create("talks", &["agent:code"]).await;
    let path = format!("/api/v1/tasks/{id}/logs");
    let page = eventually("the first line is stored", async || {
        let (_, page) = node.get(&path).await;
        (page["next_offset"] == 4).then_some(page)
    })
    .await;
    assert_eq!((&page["items"][0]["data"], &page["done"]), (&json!("one\n"), &json!(false)));
    assert_eq!(page["items"][0]["attempt"], 1);
    let task = node.task(&id).await;
    assert_eq!(task["status"], "running");
    host.touch("go");
    let task = node.until(&id, "completed").await;
    assert_eq!(output(&node, &task).await, "one\nhalf é two\n");
    assert_eq!(node.get(&format!("{path}?offset=16")).await.1["done"], true);
    end(db, [node]).await;
}
