//! What becomes of a task as its issue changes.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{db::Db, forge::Issue, node::Node};

/// A replica and an agent that can take everything of these tests.
async fn house() -> (Db, Node) {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    node.register("coder", &["agent:code"], 4).await;
    node.register("writer", &["agent:docs"], 4).await;
    (db, node)
}

async fn end(db: Db, node: Node) {
    db.check_history().await;
    assert_eq!(db.count("select count(*) - count(distinct key) from fleet.tasks").await, 0);
    node.stop().await;
}

/// What the agent is told of a task that it runs.
async fn heartbeat(node: &Node, agent_id: &str, task: &Value) -> Value {
    let body = json!({"agent_id": agent_id, "running": [task["task_id"]]});
    node.must("/api/v1/agents/heartbeat", body).await
}

async fn release(node: &Node, task: &Value, agent_id: &str) -> Value {
    let path = format!("/api/v1/tasks/{}/release", task["task_id"].as_str().unwrap());
    node.must(&path, json!({"agent_id": agent_id, "lease": task["lease"]})).await
}

#[tokio::test]
async fn an_issue_with_a_requirement_becomes_an_undecided_task() {
    let (db, node) = house().await;
    let issue = Issue::new(42).title("The lamp").body("It <flickers> & \"stops\"\n").labels(&[
        "bug",
        "agent/code",
        "agent:rust",
        "priority/high",
    ]);
    let reply = issue.send("opened", &node).await;
    assert_eq!(reply["result"], "created", "{reply}");
    let task = node.task("org/repo#42").await;
    assert_eq!(task["task_id"], reply["task_id"]);
    for (field, value) in [
        ("key", json!("org/repo#42")),
        ("source", json!("forgejo")),
        ("status", json!("created")),
        ("execution_mode", json!("undecided")),
        ("title", json!("The lamp")),
        ("body", json!("It <flickers> & \"stops\"\n")),
        ("priority", json!("high")),
        ("capabilities", json!(["agent:code", "agent:rust"])),
        ("attempt", json!(0)),
        ("lease", json!(0)),
        ("branch_name", json!("task/org%2Frepo%2342")),
        ("issue_url", json!("https://forge.example/Lighthouse/beacon/issues/42")),
    ] {
        assert_eq!(task[field], value, "{field}");
    }
    assert_eq!(task["repo"]["full_name"], "org/repo");
    assert_eq!(task["repo"]["clone_url"], "https://forge.example/Lighthouse/beacon.git");
    for label in ["bug", "agent/code", "agent:rust", "priority/high"] {
        assert!(task["labels"].as_array().unwrap().contains(&json!(label)), "{task}");
    }
    end(db, node).await;
}

#[tokio::test]
async fn an_issue_without_a_requirement_waits_for_one() {
    let (db, node) = house().await;
    let issue = Issue::new(42).labels(&["bug"]);
    assert_eq!(issue.send("opened", &node).await["result"], "ignored");
    assert_eq!(node.get("/api/v1/tasks/org%2Frepo%2342").await.0, StatusCode::NOT_FOUND);
    let issue = issue.labels(&["bug", "agent/code"]).at(9);
    assert_eq!(issue.send("label_updated", &node).await["result"], "created");
    assert_eq!(node.task("org/repo#42").await["status"], "created");
    end(db, node).await;
}

#[tokio::test]
async fn edits_and_labels_reach_a_task_that_is_free() {
    let (db, node) = house().await;
    let issue = Issue::new(42);
    issue.send("opened", &node).await;
    let issue = issue.title("new title").body("new body").at(1);
    assert_eq!(issue.send("edited", &node).await["result"], "updated");
    let task = node.task("org/repo#42").await;
    assert_eq!((&task["title"], &task["body"]), (&json!("new title"), &json!("new body")));

    let issue = issue.labels(&["agent/docs", "priority/urgent", "p1"]).at(2);
    assert_eq!(issue.send("label_updated", &node).await["result"], "updated");
    let task = node.task("org/repo#42").await;
    assert_eq!(task["capabilities"], json!(["agent:docs"]));
    assert_eq!(task["priority"], "urgent");
    // The other lane: the coder cannot take it any more, the writer can.
    assert!(node.dequeue("coder", 0).await.is_none());
    let taken = node.dequeue("writer", 5).await.unwrap();
    assert_eq!(taken["task_id"], task["task_id"]);
    let prompt = taken["prompt"].as_str().unwrap();
    assert!(prompt.contains("new title") && prompt.contains("new body"), "{prompt}");
    end(db, node).await;
}

#[tokio::test]
async fn an_edit_during_a_lease_is_kept_and_reaches_the_next_claim() {
    let (db, node) = house().await;
    let issue = Issue::new(42).body("old body");
    issue.send("opened", &node).await;
    let held = node.dequeue("coder", 5).await.unwrap();
    // Several, of which only the newest counts; the last also moves the task to another lane.
    issue.clone().body("middle body").at(1).send("edited", &node).await;
    let newest = issue.body("new body").labels(&["agent/docs"]).at(2);
    assert_eq!(newest.send("label_updated", &node).await["result"], "updated");
    // The holder keeps what it was given, and its right.
    let running = node.task("org/repo#42").await;
    assert_eq!((&running["body"], &running["lease"]), (&json!("old body"), &held["lease"]));
    assert_eq!(running["capabilities"], json!(["agent:code"]));
    assert_eq!(heartbeat(&node, "coder", &held).await["cancel"], json!([]));
    let path = format!("/api/v1/tasks/{}/status", held["task_id"].as_str().unwrap());
    let body = json!({"agent_id": "coder", "lease": held["lease"], "status": "running"});
    assert_eq!(node.must(&path, body).await["body"], "old body");

    let freed = release(&node, &held, "coder").await;
    assert_eq!((&freed["status"], &freed["body"]), (&json!("created"), &json!("new body")));
    assert!(node.dequeue("coder", 0).await.is_none());
    let next = node.dequeue("writer", 5).await.unwrap();
    assert_eq!((&next["body"], &next["attempt"]), (&json!("new body"), &json!(1)));
    assert!(next["prompt"].as_str().unwrap().contains("new body"));
    end(db, node).await;
}

#[tokio::test]
async fn a_kept_edit_is_applied_however_the_lease_ends() {
    let (db, node) = house().await;
    for (number, how) in ["failed", "completed", "deregister"].into_iter().enumerate() {
        let issue = Issue::new(i64::try_from(number).unwrap() + 1);
        issue.send("opened", &node).await;
        let held = node.dequeue("coder", 5).await.unwrap();
        issue.clone().body("new body").at(1).send("edited", &node).await;
        match how {
            "deregister" => {
                node.must("/api/v1/agents/deregister", json!({"agent_id": "coder"})).await;
                node.register("coder", &["agent:code"], 4).await;
            }
            status => {
                let path = format!("/api/v1/tasks/{}/complete", held["task_id"].as_str().unwrap());
                let body = json!({"agent_id": "coder", "lease": held["lease"], "status": status,
                                  "duration_seconds": 1, "summary": "", "artifacts": []});
                node.must(&path, body).await;
            }
        }
        let task = node.task(&issue.key()).await;
        assert_eq!(task["body"], "new body", "{how}");
        if how == "completed" {
            assert_eq!(task["status"], "completed");
        } else {
            let again = node.dequeue("coder", 10).await.unwrap();
            assert_eq!(again["body"], "new body", "{how}");
            node.complete(&again, "coder").await;
        }
    }
    end(db, node).await;
}

/// Its lease ended by a cancel, which applies nothing: the task was over.
#[tokio::test]
async fn a_kept_edit_is_applied_by_the_operators_retry() {
    let (db, node) = house().await;
    let issue = Issue::new(42).body("old body");
    let id = issue.send("opened", &node).await["task_id"].as_str().unwrap().to_owned();
    node.dequeue("coder", 5).await.unwrap();
    let newest = issue.body("new body").labels(&["agent/docs", "priority/high"]).at(1);
    assert_eq!(newest.send("label_updated", &node).await["result"], "updated");
    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    assert_eq!(node.task(&id).await["body"], "old body");
    let again = node.must(&format!("/api/v1/tasks/{id}/retry"), json!({})).await;
    assert_eq!((&again["status"], &again["body"]), (&json!("created"), &json!("new body")));
    assert_eq!(again["priority"], "high");
    assert!(node.dequeue("coder", 0).await.is_none());
    let next = node.dequeue("writer", 5).await.unwrap();
    assert_eq!((&next["task_id"], &next["body"]), (&json!(id), &json!("new body")));
    let applied = "select count(*) from fleet.tasks t join fleet.forge_issues f using (key)
                    where t.issue_version = f.version";
    assert_eq!(db.count(applied).await, 1);
    end(db, node).await;
}

#[tokio::test]
async fn losing_the_last_requirement_cancels_and_one_put_back_restarts() {
    let (db, node) = house().await;
    let issue = Issue::new(42).labels(&["bug", "agent/code"]);
    let task_id = issue.send("opened", &node).await["task_id"].clone();
    let bare = issue.clone().labels(&["bug"]).at(1);
    assert_eq!(bare.send("label_updated", &node).await["result"], "updated");
    let task = node.task("org/repo#42").await;
    assert_eq!((&task["status"], &task["capabilities"]), (&json!("cancelled"), &json!([])));
    assert!(node.dequeue("coder", 0).await.is_none());
    // Another label restarts nothing.
    issue.clone().labels(&["bug", "later"]).at(2).send("label_updated", &node).await;
    assert_eq!(node.task("org/repo#42").await["status"], "cancelled");
    let back = issue.clone().labels(&["agent/code"]).at(3).send("label_updated", &node).await;
    assert_eq!(back["task_id"], task_id);
    assert_eq!(node.dequeue("coder", 5).await.unwrap()["task_id"], task_id);
    // All labels at once; the holder learns it.
    let held = node.task("org/repo#42").await;
    issue.labels(&[]).at(4).send("label_cleared", &node).await;
    assert_eq!(node.task("org/repo#42").await["status"], "cancelled");
    assert_eq!(heartbeat(&node, "coder", &held).await["cancel"], json!([task_id]));
    end(db, node).await;
}

#[tokio::test]
async fn closing_cancels_also_what_is_leased() {
    let (db, node) = house().await;
    for leased in [false, true] {
        let issue = Issue::new(if leased { 1 } else { 2 });
        issue.send("opened", &node).await;
        let held = if leased { node.dequeue("coder", 5).await } else { None };
        issue.clone().closed(None).at(1).send("closed", &node).await;
        assert_eq!(node.task(&issue.key()).await["status"], "cancelled");
        if let Some(held) = held {
            let told = heartbeat(&node, "coder", &held).await;
            assert_eq!(told["cancel"], json!([held["task_id"]]), "{told}");
            // Its lease is gone.
            assert_eq!(node.complete(&held, "coder").await.0, StatusCode::CONFLICT);
        }
        // A commit that explains the closing after all.
        issue.closed(Some("0123456789")).at(2).send("closed", &node).await;
    }
    assert!(node.dequeue("coder", 0).await.is_none());
    assert_eq!(node.task("org/repo#1").await["status"], "completed");
    assert_eq!(node.task("org/repo#2").await["status"], "completed");
    end(db, node).await;
}

#[tokio::test]
async fn closing_by_a_commit_completes_and_leaves_the_lease() {
    let (db, node) = house().await;
    let issue = Issue::new(42);
    issue.send("opened", &node).await;
    let held = node.dequeue("coder", 5).await.unwrap();
    issue.clone().closed(Some("abc123")).at(1).send("closed", &node).await;
    assert_eq!(node.task("org/repo#42").await["status"], "completed");
    assert_eq!(heartbeat(&node, "coder", &held).await["cancel"], json!([]));
    // Reopened while the holder still owes its receipt: kept, and applied with it.
    issue.open().at(2).send("reopened", &node).await;
    assert_eq!(node.task("org/repo#42").await["status"], "completed");
    let (status, task) = node.complete(&held, "coder").await;
    assert_eq!(status, StatusCode::OK, "{task}");
    let task = node.task("org/repo#42").await;
    assert_eq!(task["status"], "created", "{task}");
    assert_eq!(task["receipts"].as_array().unwrap().len(), 1);
    end(db, node).await;
}

#[tokio::test]
async fn what_the_holder_says_after_the_closing_is_taken_and_moves_nothing_back() {
    let (db, node) = house().await;
    let issue = Issue::new(42);
    issue.send("opened", &node).await;
    let held = node.dequeue("coder", 5).await.unwrap();
    issue.closed(Some("abc123")).at(1).send("closed", &node).await;
    let call = async |what: &str, more: Value| {
        let mut body = more;
        body["agent_id"] = json!("coder");
        body["lease"] = held["lease"].clone();
        let path = format!("/api/v1/tasks/{}/{what}", held["task_id"].as_str().unwrap());
        node.must(&path, body).await;
        let task = node.task("org/repo#42").await;
        assert_eq!(task["status"], "completed", "after {what}");
        task
    };
    call("status", json!({"status": "running"})).await;
    call("logs", json!({"offset": 0, "data": "last words"})).await;
    assert_eq!(db.count("select count(*) from fleet.task_logs").await, 1);
    let receipt =
        json!({"status": "failed", "duration_seconds": 1, "summary": "", "artifacts": []});
    let task = call("complete", receipt).await;
    assert_eq!(task["receipts"][0]["status"], "failed");
    end(db, node).await;
}

#[tokio::test]
async fn closing_waits_for_a_known_pull_request() {
    let (db, node) = house().await;
    let issue = Issue::new(42);
    issue.send("opened", &node).await;
    let held = node.dequeue("coder", 5).await.unwrap();
    let path = format!("/api/v1/tasks/{}/complete", held["task_id"].as_str().unwrap());
    let url = "https://forge.example/org/repo/pulls/43";
    let body = json!({"agent_id": "coder", "lease": held["lease"], "status": "completed",
                      "duration_seconds": 1, "summary": "", "artifacts": [{"type": "pr", "url": url}]});
    assert_eq!(node.must(&path, body).await["status"], "review_pending");
    issue.closed(None).at(1).send("closed", &node).await;
    assert_eq!(node.task("org/repo#42").await["status"], "review_pending");
    end(db, node).await;
}

#[tokio::test]
async fn reopening_restarts_once_and_no_other_edit_does() {
    let (db, node) = house().await;
    let issue = Issue::new(42).labels(&["agent/code", "bug"]);
    let task_id = issue.send("opened", &node).await["task_id"].clone();
    let mut second = 0;
    let mut next = || {
        second += 1;
        second
    };
    for round in 0..2 {
        let held = node.dequeue("coder", 5).await.unwrap();
        assert_eq!(held["task_id"], task_id);
        node.complete(&held, "coder").await;
        // Finished work stays finished.
        for edited in [
            issue.clone().body("another body").at(next()),
            issue.clone().labels(&["agent/code", "ui"]).at(next()),
            issue.clone().labels(&["agent/code", "agent/docs"]).at(next()),
            issue.clone().labels(&["agent/code", "bug"]).at(next()),
        ] {
            edited.send("label_updated", &node).await;
            assert_eq!(node.task("org/repo#42").await["status"], "completed", "round {round}");
        }
        issue.clone().closed(None).at(next()).send("closed", &node).await;
        assert_eq!(node.task("org/repo#42").await["status"], "completed");
        let reopened = issue.clone().open().at(next()).send("reopened", &node).await;
        assert_eq!((&reopened["result"], &reopened["task_id"]), (&json!("updated"), &task_id));
        assert_eq!(node.task("org/repo#42").await["status"], "created");
    }
    end(db, node).await;
}

#[tokio::test]
async fn finished_work_restarts_when_its_requirement_was_gone_and_is_back() {
    let (db, node) = house().await;
    let issue = Issue::new(42);
    issue.send("opened", &node).await;
    let held = node.dequeue("coder", 5).await.unwrap();
    node.complete(&held, "coder").await;
    issue.clone().labels(&[]).at(1).send("label_cleared", &node).await;
    assert_eq!(node.task("org/repo#42").await["status"], "completed");
    issue.at(2).send("label_updated", &node).await;
    assert_eq!(node.task("org/repo#42").await["status"], "created");
    end(db, node).await;
}

#[tokio::test]
async fn a_lease_that_is_lost_after_the_work_was_done_requeues_nothing() {
    let (db, node) = house().await;
    let issue = Issue::new(42);
    issue.send("opened", &node).await;
    node.dequeue("coder", 5).await.unwrap();
    issue.closed(Some("abc123")).at(1).send("closed", &node).await;
    node.must("/api/v1/agents/deregister", json!({"agent_id": "coder"})).await;
    let task = node.task("org/repo#42").await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("completed"), &json!(1)), "{task}");
    node.register("coder", &["agent:code"], 4).await;
    assert!(node.dequeue("coder", 0).await.is_none());
    end(db, node).await;
}
