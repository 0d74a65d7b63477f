//! The database is away or does not answer: 503 with `Retry-After`, from every endpoint that needs it.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::{
    api::{Needs, endpoints, fingerprint, request},
    db::Db,
    eventually,
    node::Node,
};

#[tokio::test]
async fn a_database_that_does_not_answer_is_a_503_that_says_when_to_come_back() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.must("/api/v1/tasks", json!({"title": "t"})).await;
    let task = node.dequeue("a", 0).await.unwrap();
    let all = endpoints(task["task_id"].as_str().unwrap(), "a", task["lease"].as_i64().unwrap());
    let before = fingerprint(&db).await;
    // Every statement runs into its lock_timeout.
    let blocker = db.connect().await;
    blocker
        .batch_execute("begin; lock table fleet.tasks, fleet.agents, fleet.hosts, fleet.task_events, fleet.lanes in access exclusive mode")
        .await
        .unwrap();
    let asked = all.iter().filter(|e| !matches!(e.needs, Needs::Nothing | Needs::Signature));
    join_all(asked.map(async |endpoint| {
        let body =
            (endpoint.method == Method::POST).then(|| endpoint.body.to_string().into_bytes());
        let headers = [("content-type", "application/json")];
        let reply = request(&node, &endpoint.method, &endpoint.path, &headers, body).await;
        let what = format!("{} {}", endpoint.method, endpoint.name);
        reply.is_error(&what, 503, "unavailable");
        let after: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&after), "{what}");
    }))
    .await;
    blocker.batch_execute("rollback").await.unwrap();
    eventually("the replica serves again", async || {
        node.get("/api/v1/tasks").await.0.is_success().then_some(())
    })
    .await;
    assert_eq!(fingerprint(&db).await, before, "a call that was refused changed something");
    db.check_history().await;
    node.stop().await;
}
