//! What an agent does with a task it holds: status, receipts, release.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    api::{fingerprint, is_error},
    db::Db,
    node::Node,
};

/// A replica with an agent of many slots.
async fn stage() -> (Db, Node) {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 100).await;
    (db, node)
}

/// A task with this body, taken by the agent.
async fn taken(node: &Node, body: Value) -> Value {
    let made = node.must("/api/v1/tasks", body).await;
    let task = node.dequeue("a", 50).await.unwrap();
    assert_eq!(task["task_id"], made["task_id"]);
    task
}

/// A receipt for a task as dequeued.
fn receipt(task: &Value, status: &str) -> Value {
    json!({"agent_id": "a", "lease": task["lease"], "status": status, "duration_seconds": 2.5, "summary": "s",
           "artifacts": [], "usage": {"input_tokens": 1, "output_tokens": 2, "cost_usd": 0.5}})
}

fn path(task: &Value, act: &str) -> String {
    format!("/api/v1/tasks/{}/{act}", task["task_id"].as_str().unwrap())
}

fn types(task: &Value) -> Vec<&str> {
    task["events"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn running_may_be_said_again_and_tells_how_it_goes() {
    let (db, node) = stage().await;
    let task = taken(&node, json!({"title": "t"})).await;
    let say = async |status: &str, progress: Value| {
        let body = json!({"agent_id": "a", "lease": task["lease"], "status": status, "progress": progress});
        node.post(&path(&task, "status"), body).await
    };
    let (status, running) = say("running", Value::Null).await;
    assert_eq!((status, &running["status"]), (StatusCode::OK, &json!("running")));
    assert!(running["started_at"].is_string());
    for line in ["half way", "nearly"] {
        let (status, again) = say("running", json!(line)).await;
        assert_eq!((status, &again["started_at"]), (StatusCode::OK, &running["started_at"]));
    }
    for illegal in ["completed", "failed", "created", "assigned", "cancelled"] {
        let (status, reply) = say(illegal, Value::Null).await;
        is_error(illegal, status, &reply, 400, "illegal_transition");
    }
    let shown = node.task(task["task_id"].as_str().unwrap()).await;
    assert_eq!(types(&shown), ["created", "claimed", "started", "progress", "progress"]);
    assert_eq!(shown["events"][4]["detail"]["progress"], "nearly");
    assert_eq!(shown["events"][4]["to_status"], Value::Null);
    // A task that runs on a host is no agent's to speak for.
    let push = node.must("/api/v1/tasks", json!({"title": "p", "execution_mode": "ssh_cli"})).await;
    let body = json!({"agent_id": "a", "lease": 0, "status": "running"});
    let (status, reply) = node.post(&path(&push, "status"), body).await;
    is_error("ssh_cli", status, &reply, 400, "illegal_transition");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_late_status_of_a_task_that_a_host_has_by_now_has_lost_its_lease() {
    let (db, node) = stage().await;
    let task = taken(&node, json!({"title": "t"})).await;
    let body = json!({"agent_id": "a", "lease": task["lease"]});
    node.must(&path(&task, "release"), body).await;
    // As a host's claim leaves it.
    let sql = "update fleet.tasks set execution_mode = 'ssh_cli', lease = lease + 1";
    db.execute(sql).await;
    for (lease, status, code) in [(1, 409, "lease_lost"), (2, 400, "illegal_transition")] {
        let body = json!({"agent_id": "a", "lease": lease, "status": "running"});
        let (said, reply) = node.post(&path(&task, "status"), body).await;
        is_error(&format!("lease {lease}"), said, &reply, status, code);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_receipt_completes_once_and_the_same_one_again_changes_nothing() {
    let (db, node) = stage().await;
    let task = taken(&node, json!({"title": "t"})).await;
    let mut body = receipt(&task, "completed");
    body["task_id"] = task["task_id"].clone();
    let (status, done) = node.post(&path(&task, "complete"), body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{done}");
    for (field, value) in [
        ("status", json!("completed")),
        ("summary", json!("s")),
        ("usage", json!({"input_tokens": 1, "output_tokens": 2, "cost_usd": 0.5})),
        ("lease", json!(1)),
        ("lease_expires_at", Value::Null),
        ("deadline_at", Value::Null),
        ("assigned_agent_id", json!("a")),
    ] {
        assert_eq!(done[field], value, "{field}");
    }
    assert!(done["completed_at"].is_string());
    let before = fingerprint(&db).await;
    for repeat in [path(&task, "complete"), "/api/v1/receipts".to_owned()] {
        let (status, again) = node.post(&repeat, body.clone()).await;
        assert_eq!((status, again), (StatusCode::OK, done.clone()));
    }
    let mut other = body.clone();
    other["summary"] = json!("another");
    let (status, reply) = node.post(&path(&task, "complete"), other).await;
    is_error("a different receipt", status, &reply, 409, "lease_lost");
    // Another agent does not pass for this one by repeating it.
    node.register("b", &[], 1).await;
    let before_b = fingerprint(&db).await;
    body["agent_id"] = json!("b");
    let (status, reply) = node.post(&path(&task, "complete"), body.clone()).await;
    is_error("another's receipt", status, &reply, 409, "lease_lost");
    assert_eq!(fingerprint(&db).await, before_b);
    for table in ["tasks", "task_events", "receipts", "task_specs"] {
        assert_eq!(before_b[table], before[table], "{table}");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_repeated_receipt_is_known_after_the_session_has_ended() {
    let (db, node) = stage().await;
    let task = taken(&node, json!({"title": "t"})).await;
    let body = receipt(&task, "completed");
    node.must(&path(&task, "complete"), body.clone()).await;
    node.must("/api/v1/agents/deregister", json!({"agent_id": "a"})).await;
    let (status, _) = node.post(&path(&task, "complete"), body.clone()).await;
    assert_eq!(status, StatusCode::OK);
    node.register("a", &[], 1).await;
    let (status, _) = node.post(&path(&task, "complete"), body).await;
    assert_eq!(status, StatusCode::OK);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_receipt_with_a_pull_request_waits_for_its_review() {
    let (db, node) = stage().await;
    let task = taken(&node, json!({"title": "t"})).await;
    let mut body = receipt(&task, "completed");
    let artifacts = json!([{"type": "file", "path": "a.md"}, {"type": "commit", "sha": "abc"}, {"type": "url", "url": "https://x/ci"},
                           {"type": "pr", "url": "https://x/org/repo/pulls/7"}]);
    body["artifacts"] = artifacts.clone();
    body["task_id"] = task["task_id"].clone();
    body["extra"] = json!("ignored");
    let done = node.must("/api/v1/receipts", body).await;
    assert_eq!(
        (&done["status"], &done["pr_url"]),
        (&json!("review_pending"), &json!("https://x/org/repo/pulls/7"))
    );
    assert_eq!((&done["lease_expires_at"], &done["completed_at"]), (&Value::Null, &Value::Null));
    assert_eq!(db.count("select count(*) from fleet.tasks where holder is not null").await, 0);
    let shown = node.task(task["task_id"].as_str().unwrap()).await;
    assert_eq!(shown["receipts"][0]["artifacts"], artifacts);
    assert_eq!(types(&shown), ["created", "claimed", "review_pending"]);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_failed_or_partial_receipt_is_retried_and_then_fails() {
    let (db, node) = stage().await;
    let mut task = taken(&node, json!({"title": "t", "max_retries": 2})).await;
    let id = task["task_id"].as_str().unwrap().to_owned();
    for (n, status) in ["failed", "partial"].into_iter().enumerate() {
        let mut body = receipt(&task, status);
        body["error"] = json!(format!("broken {n}"));
        let back = node.must(&path(&task, "complete"), body).await;
        assert_eq!((&back["status"], &back["retry_count"]), (&json!("scheduled"), &json!(n + 1)));
        assert_eq!(
            (&back["error"], &back["execution_mode"]),
            (&json!(format!("broken {n}")), &json!("undecided"))
        );
        assert!(back["run_at"].is_string());
        task = node.dequeue("a", 50).await.unwrap();
        assert_eq!(
            (&task["task_id"], &task["lease"], &task["attempt"]),
            (&json!(id), &json!(n + 2), &json!(n + 2))
        );
    }
    let failed = node.must(&path(&task, "complete"), receipt(&task, "failed")).await;
    assert_eq!((&failed["status"], &failed["retry_count"]), (&json!("failed"), &json!(2)));
    // Without an error, the summary says why.
    assert_eq!(failed["error"], "s");
    let shown = node.task(&id).await;
    let kept: Vec<&Value> =
        shown["receipts"].as_array().unwrap().iter().map(|r| &r["status"]).collect();
    assert_eq!(kept, ["failed", "partial", "failed"]);
    assert_eq!(
        types(&shown),
        ["created", "claimed", "failed", "due", "claimed", "failed", "due", "claimed", "failed"]
    );
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn the_lease_may_be_left_out_while_the_task_was_claimed_once() {
    let (db, node) = stage().await;
    let without = |task: &Value, status: &str| {
        let mut body = receipt(task, status);
        body.as_object_mut().unwrap().remove("lease");
        body
    };
    let made = node.must("/api/v1/tasks", json!({"title": "t"})).await;
    // The claim is found behind however much.
    let sql = "insert into fleet.task_events (task_id, type, actor)
               select task_id, 'progress', 'agent:other' from fleet.tasks, generate_series(1, 1100)";
    db.execute(sql).await;
    let task = node.dequeue("a", 50).await.unwrap();
    assert_eq!(task["task_id"], made["task_id"]);
    let (status, reply) = node.post(&path(&task, "complete"), without(&task, "failed")).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let again = node.dequeue("a", 50).await.unwrap();
    assert_eq!(again["task_id"], task["task_id"]);
    let before = fingerprint(&db).await;
    let (status, reply) = node.post(&path(&task, "complete"), without(&again, "completed")).await;
    let sentence = is_error("claimed twice", status, &reply, 400, "bad_request");
    assert!(sentence.contains("lease"), "{sentence}");
    // Never claimed by it.
    node.register("b", &[], 1).await;
    let mut body = without(&again, "completed");
    body["agent_id"] = json!("b");
    let (status, reply) = node.post(&path(&task, "complete"), body).await;
    is_error("never claimed", status, &reply, 409, "lease_lost");
    assert_eq!(fingerprint(&db).await["tasks"], before["tasks"]);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_receipt_names_one_task() {
    let (db, node) = stage().await;
    let task = taken(&node, json!({"title": "t", "key": "k#1"})).await;
    let other = taken(&node, json!({"title": "u", "key": "k#2"})).await;
    let before = fingerprint(&db).await;
    for named in [other["task_id"].clone(), json!("k#2"), json!("no-such-key")] {
        let mut body = receipt(&task, "completed");
        body["task_id"] = named;
        let (status, reply) = node.post(&path(&task, "complete"), body).await;
        is_error("another task's name", status, &reply, 400, "bad_request");
    }
    assert_eq!(fingerprint(&db).await, before);
    // Its key and its id are the same task.
    let mut body = receipt(&task, "completed");
    body["task_id"] = json!("k#1");
    assert_eq!(node.must(&path(&task, "complete"), body).await["status"], "completed");
    let mut body = receipt(&other, "completed");
    body["task_id"] = other["task_id"].clone();
    assert_eq!(node.must("/api/v1/tasks/k%232/complete", body).await["status"], "completed");
    // A body says a key as it is: nothing in it is an escape.
    let task = taken(&node, json!({"title": "v", "key": "https://f/a%20b"})).await;
    let mut body = receipt(&task, "completed");
    body["task_id"] = json!("https://f/a%20b");
    for at in ["/api/v1/tasks/https%3A%2F%2Ff%2Fa%2520b/complete", "/api/v1/receipts"] {
        assert_eq!(node.must(at, body.clone()).await["status"], "completed", "{at}");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_release_refunds_the_attempt_five_times() {
    let (db, node) = stage().await;
    let mut task = taken(&node, json!({"title": "t", "max_retries": 1})).await;
    let release = async |task: &Value, more: Value| {
        let mut body = json!({"agent_id": "a", "lease": task["lease"], "reason": "no room"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        node.must(&path(task, "release"), body).await
    };
    for n in 1..=5 {
        let back = release(&task, json!({})).await;
        // At once the first time, then after a while.
        assert_eq!(back["status"], if n == 1 { "created" } else { "scheduled" }, "release {n}");
        assert_eq!((&back["attempt"], &back["retry_count"]), (&json!(0), &json!(0)), "release {n}");
        assert_eq!((&back["lease"], &back["execution_mode"]), (&json!(n), &json!("undecided")));
        db.execute("update fleet.tasks set run_at = now() where run_at is not null").await;
        task = node.dequeue("a", 50).await.unwrap();
    }
    let lost = release(&task, json!({})).await;
    assert_eq!(
        (&lost["status"], &lost["attempt"], &lost["retry_count"]),
        (&json!("scheduled"), &json!(1), &json!(1))
    );
    task = node.dequeue("a", 50).await.unwrap();
    let gone = release(&task, json!({})).await;
    assert_eq!(gone["status"], "agent_lost");
    let (status, reply) =
        node.post(&path(&task, "release"), json!({"agent_id": "a", "lease": task["lease"]})).await;
    is_error("a release again", status, &reply, 409, "lease_lost");

    let task = taken(&node, json!({"title": "later"})).await;
    let back = release(&task, json!({"retry_after_secs": 600})).await;
    assert_eq!(back["status"], "scheduled");
    let wait = db
        .count("select extract(epoch from run_at - last_activity_at)::bigint from fleet.tasks where status = 'scheduled'")
        .await;
    assert_eq!(wait, 600);
    let shown = node.task(task["task_id"].as_str().unwrap()).await;
    assert_eq!(shown["events"][2]["detail"]["reason"], "no room");
    db.check_history().await;
    node.stop().await;
}
