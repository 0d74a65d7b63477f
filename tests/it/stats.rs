//! The figures of the fleet, and queues paused and resumed by API.

use serde_json::{Value, json};

use crate::support::{api::is_error, db::Db, node::Node};

#[tokio::test]
async fn the_figures_are_those_of_the_tasks() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    let (_, empty) = node.get("/api/v1/stats").await;
    let nothing = json!({"by_status": {}, "by_mode": {}, "by_capabilities": [], "throughput": {"minute": 0, "hour": 0}});
    assert_eq!(empty, nothing);
    node.register("a", &["agent:x"], 2).await;
    for title in ["done", "held", "waits", "waits"] {
        node.create(title, &["agent:x"]).await;
    }
    node.create("nobody", &["agent:x", "agent:y"]).await;
    let body = json!({"title": "later", "labels": ["agent:x"], "run_at": "2999-01-01T00:00:00Z"});
    node.must("/api/v1/tasks", body).await;
    let done = node.dequeue("a", 0).await.unwrap();
    node.complete(&done, "a").await;
    node.dequeue("a", 0).await.unwrap();
    db.execute(
        "update fleet.tasks set ready_at = now() - interval '100 s' where status = 'created'",
    )
    .await;
    let (_, mut stats) = node.get("/api/v1/stats").await;
    for lane in stats["by_capabilities"].as_array_mut().unwrap() {
        let oldest = lane.as_object_mut().unwrap().remove("oldest_waiting_secs").unwrap();
        assert!((100..160).contains(&oldest.as_i64().unwrap()), "{oldest}");
    }
    assert_eq!(
        stats,
        json!({
            "by_status": {"created": 3, "scheduled": 1, "assigned": 1, "completed": 1},
            "by_mode": {"undecided": 4, "http_pull": 1},
            "by_capabilities": [
                {"capabilities": ["agent:x"], "waiting": 3, "running": 1, "paused": false},
                {"capabilities": ["agent:x", "agent:y"], "waiting": 1, "running": 0, "paused": false},
            ],
            "throughput": {"minute": 1, "hour": 1},
        })
    );
    node.stop().await;
}

#[tokio::test]
async fn a_queue_is_paused_and_resumed() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &["agent:x"], 1).await;
    // Before any task requires it.
    let set = json!({"capabilities": ["agent/x"]});
    let paused = node.must("/api/v1/queues/pause", set.clone()).await;
    assert_eq!(paused, json!({"capabilities": ["agent:x"], "paused": true}));
    node.must("/api/v1/queues/pause", set.clone()).await;
    let id = node.create("t", &["agent:x"]).await;
    assert_eq!(node.task(&id).await["waiting_reason"], "paused");
    assert!(node.dequeue("a", 0).await.is_none());
    let (_, stats) = node.get("/api/v1/stats").await;
    assert_eq!(stats["by_capabilities"][0]["paused"], true);
    // What waits is woken.
    let waits = async { node.dequeue("a", 20).await };
    let resumes = async {
        node.must("/api/v1/queues/resume", set.clone()).await;
    };
    let (task, ()) = tokio::join!(waits, resumes);
    assert_eq!(task.unwrap()["task_id"], id.as_str());
    for body in
        [json!({}), json!({"capabilities": "agent:x"}), json!({"capabilities": ["x"]}), Value::Null]
    {
        let (status, reply) = node.post("/api/v1/queues/pause", body.clone()).await;
        is_error(&body.to_string(), status, &reply, 400, "bad_request");
    }
    assert_eq!(db.count("select count(*) from fleet.lanes").await, 1);
    node.stop().await;
}
