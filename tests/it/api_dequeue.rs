//! `POST /api/v1/tasks/dequeue`: who gets what, and who waits.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{api::is_error, db::Db, eventually, node::Node};

#[tokio::test]
async fn a_dequeued_task_is_the_callers_under_a_new_lease() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &["agent:x"], 1).await;
    let (status, nothing) = node.post("/api/v1/tasks/dequeue", json!({"agent_id": "a"})).await;
    assert_eq!((status, nothing), (StatusCode::NO_CONTENT, Value::Null));
    let id = node.create("t", &["agent:x"]).await;
    let task = node.dequeue("a", 0).await.unwrap();
    for (field, value) in [
        ("task_id", json!(id)),
        ("status", json!("assigned")),
        ("execution_mode", json!("http_pull")),
        ("lease", json!(1)),
        ("attempt", json!(1)),
        ("assigned_agent_id", json!("a")),
        ("assigned_host", Value::Null),
        ("started_at", Value::Null),
        ("waiting_reason", Value::Null),
    ] {
        assert_eq!(task[field], value, "{field}");
    }
    for field in ["prompt", "lease_expires_at", "deadline_at", "assigned_at"] {
        assert!(task[field].is_string(), "{field} of {task}");
    }
    let time = |field: &str| task[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let limit = time("deadline_at").duration_since(time("assigned_at")).as_secs();
    assert_eq!(limit, 3600);
    let (status, reply) = node.post("/api/v1/tasks/dequeue", json!({"agent_id": "nobody"})).await;
    is_error("nobody", status, &reply, 404, "not_found");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_dequeue_may_ask_for_less_than_it_can_and_never_gets_more() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &["agent:x", "agent:y"], 9).await;
    node.create("y", &["agent:y"]).await;
    node.create("both", &["agent:x", "agent:y"]).await;
    node.create("z", &["agent:z"]).await;
    node.create("plain", &["bug"]).await;
    node.must("/api/v1/tasks", json!({"title": "push", "execution_mode": "ssh_cli"})).await;
    let ask = async |capabilities: Value| -> Option<String> {
        let body = json!({"agent_id": "a", "capabilities": capabilities});
        let (status, task) = node.post("/api/v1/tasks/dequeue", body).await;
        (status == StatusCode::OK).then(|| task["title"].as_str().unwrap().to_owned())
    };
    // What it names and never registered counts for nothing.
    assert_eq!(ask(json!(["agent:x", "agent:z"])).await.as_deref(), Some("plain"));
    assert_eq!(ask(json!(["agent:x", "agent:z"])).await, None);
    assert_eq!(ask(json!([])).await, None);
    assert_eq!(ask(json!(["agent/y"])).await.as_deref(), Some("y"));
    assert_eq!(ask(Value::Null).await.as_deref(), Some("both"));
    assert_eq!(ask(Value::Null).await, None);
    db.check_history().await;
    node.stop().await;
}

/// Waits until a replica has heard from this agent again, by the poll that the test has just begun.
async fn heard(db: &Db, agent_id: &str) {
    let fresh = format!(
        "select count(*) from fleet.sessions
          where subject = '{agent_id}' and ended_at is null and last_heartbeat_at > now() - interval '30 seconds'"
    );
    eventually(&format!("{agent_id} is heard"), async || {
        (db.count(&fresh).await > 0).then_some(())
    })
    .await;
}

/// As if it had been silent for a while.
async fn silence(db: &Db, agent_id: &str) {
    db.execute(&format!(
        "update fleet.sessions set last_heartbeat_at = now() - interval '1 minute' where subject = '{agent_id}'"
    ))
    .await;
}

/// A poll that waits, and the task that ends its wait.
async fn woken(db: &Db, waits_on: &Node, made_on: &Node, agent_id: &str) {
    waits_on.register(agent_id, &["agent:x"], 1).await;
    silence(db, agent_id).await;
    let create = async {
        heard(db, agent_id).await;
        made_on.create("t", &["agent:x"]).await
    };
    let (task, id) = tokio::join!(waits_on.dequeue(agent_id, 50), create);
    assert_eq!(task.unwrap()["task_id"], id);
}

#[tokio::test]
async fn a_waiting_poll_is_woken_by_a_create_on_its_own_and_on_another_replica() {
    let db = Db::new().await;
    let (one, two) = (Node::start(&db, "r1", "").await, Node::start(&db, "r2", "").await);
    woken(&db, &one, &one, "a").await;
    woken(&db, &one, &two, "b").await;
    db.check_history().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_full_agents_poll_is_woken_by_its_own_freed_slot() {
    let db = Db::new().await;
    let (one, two) = (Node::start(&db, "r1", "").await, Node::start(&db, "r2", "").await);
    one.register("a", &[], 1).await;
    one.create("t1", &[]).await;
    let second = one.create("t2", &[]).await;
    let first = one.dequeue("a", 0).await.unwrap();
    assert!(two.dequeue("a", 0).await.is_none(), "it is full on every replica");
    // The answers above are signs of life, too; let them be written first.
    heard(&db, "a").await;
    let free = async { two.complete(&first, "a").await };
    let (task, (status, _)) = tokio::join!(one.dequeue("a", 50), free);
    assert_eq!(
        (task.unwrap()["task_id"].as_str(), status),
        (Some(second.as_str()), StatusCode::OK)
    );
    db.check_history().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_poll_that_gets_nothing_ends_with_204() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    let begun = tokio::time::Instant::now();
    assert!(node.dequeue("a", 1).await.is_none());
    assert!(begun.elapsed() >= Duration::from_secs(1), "it did not wait");
    // A task that nobody waits for any more stays where it is.
    let id = node.create("t", &[]).await;
    assert_eq!(node.task(&id).await["status"], "created");
    // An ended session is told so while it waits.
    node.register("b", &["agent:x"], 1).await;
    node.must("/api/v1/agents/deregister", json!({"agent_id": "b"})).await;
    let body = json!({"agent_id": "b", "wait_secs": 50});
    let (status, reply) = node.post("/api/v1/tasks/dequeue", body).await;
    is_error("an ended session", status, &reply, 409, "session_ended");
    node.stop().await;
}

#[tokio::test]
async fn over_two_replicas_an_agent_never_holds_more_than_its_slots() {
    let db = Db::new().await;
    let (one, two) = (Node::start(&db, "r1", "").await, Node::start(&db, "r2", "").await);
    one.register("a", &[], 3).await;
    let many: Vec<Value> = (0..12).map(|n| json!({"title": format!("t{n}")})).collect();
    one.must("/api/v1/tasks", json!(many)).await;
    let mut done = 0;
    for _ in 0..4 {
        let polls = (0..10).map(|n| if n % 2 == 0 { &one } else { &two }.dequeue("a", 0));
        let taken: Vec<Value> = join_all(polls).await.into_iter().flatten().collect();
        assert!(taken.len() <= 3, "{} at once", taken.len());
        assert_eq!(
            db.count("select count(*) from fleet.tasks where holder is not null").await,
            i64::try_from(taken.len()).unwrap()
        );
        for task in &taken {
            assert_eq!(two.complete(task, "a").await.0, StatusCode::OK);
            done += 1;
        }
    }
    // Polls that lost a race for a row may have gone without; none is lost.
    while let Some(task) = one.dequeue("a", 0).await {
        assert_eq!(one.complete(&task, "a").await.0, StatusCode::OK);
        done += 1;
        assert!(done <= 12);
    }
    assert_eq!(done, 12);
    assert_eq!(
        db.count("select count(*) from fleet.tasks where status = 'completed' and lease = 1").await,
        12
    );
    db.check_history().await;
    one.stop().await;
    two.stop().await;
}

/// Those that ask without waiting come again and again; so do those that wait, behind a backlog.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_in_a_loop_keeps_nobody_else_from_work() {
    let db = Db::new().await;
    let node = Arc::new(Node::start(&db, "r", "").await);
    for id in ["x1", "x2", "x3", "x4"] {
        node.register(id, &["agent:x"], 1).await;
    }
    node.register("y", &["agent:y"], 1).await;
    let mut asking = tokio::task::JoinSet::new();
    for id in ["x1", "x2", "x3", "x4"].repeat(12) {
        let node = Arc::clone(&node);
        asking.spawn(async move {
            loop {
                assert!(node.dequeue(id, 0).await.is_none());
            }
        });
    }
    for _ in 0..5 {
        let waiting = Arc::clone(&node);
        let waiting = tokio::spawn(async move { waiting.dequeue("y", 5).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.create("t", &["agent:y"]).await;
        let task = waiting.await.unwrap().expect("it is served among the others");
        assert_eq!(node.complete(&task, "y").await.0, StatusCode::OK);
    }
    asking.shutdown().await;
    db.check_history().await;
}
