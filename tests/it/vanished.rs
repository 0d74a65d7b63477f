//! Callers that hang up: a claim that never reached them is as if it had not been.

use std::time::Duration;

use agent_fleet::{
    coordinator::{Answer, Matchmaker},
    model::SessionId,
    store::Waiter,
};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{api::is_error, db::Db, eventually, node::Node};

async fn session(db: &Db, agent: &str) -> SessionId {
    let row = db
        .client
        .query_one("select session_id from fleet.agents where agent_id = $1", &[&agent])
        .await
        .unwrap();
    SessionId(row.get(0))
}

async fn is_as_before(node: &Node, id: &str, lease: i64) {
    let task = eventually("the claim is undone", async || {
        let task = node.task(id).await;
        (task["status"] == "created" && task["lease"] == lease).then_some(task)
    })
    .await;
    assert_eq!(task["attempt"], 0, "it is not counted");
    assert_eq!((&task["execution_mode"], &task["retry_count"]), (&json!("undecided"), &json!(0)));
}

#[tokio::test]
async fn a_place_that_is_dropped_gives_back_what_was_handed_to_it() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("gone", &[], 1).await;
    let gone = session(&db, "gone").await;
    let id = node.create("t", &[]).await;

    // Handed out, never looked at.
    let place = Matchmaker::wait(&node.replica, Waiter::one(gone), false);
    node.until(&id, "assigned").await;
    drop(place);
    is_as_before(&node, &id, 1).await;

    // Looked at, never written to the caller.
    let mut place = Matchmaker::wait(&node.replica, Waiter::one(gone), false);
    let Answer::Tasks(handed) = place.answer(Duration::from_secs(10)).await else {
        panic!("it had nothing")
    };
    drop(handed);
    is_as_before(&node, &id, 2).await;

    // Written.
    let mut place = Matchmaker::wait(&node.replica, Waiter::one(gone), false);
    let Answer::Tasks(handed) = place.answer(Duration::from_secs(10)).await else {
        panic!("it had nothing")
    };
    handed.delivered();
    let task = node.task(&id).await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("assigned"), &json!(1)));
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_receipt_may_leave_out_the_lease_after_a_claim_that_never_arrived() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 1).await;
    let session = session(&db, "a").await;
    let id = node.create("t", &[]).await;
    for lease in [1, 2] {
        let place = Matchmaker::wait(&node.replica, Waiter::one(session), false);
        node.until(&id, "assigned").await;
        drop(place);
        is_as_before(&node, &id, lease).await;
    }
    let receipt = json!({"agent_id": "a", "status": "completed"});
    let complete = format!("/api/v1/tasks/{id}/complete");
    let (status, reply) = node.post(&complete, receipt.clone()).await;
    is_error("it was never told of any", status, &reply, 409, "lease_lost");
    let task = node.dequeue("a", 5).await.unwrap();
    assert_eq!((&task["task_id"], &task["lease"]), (&json!(id), &json!(3)));
    assert_eq!(node.must(&complete, receipt).await["status"], "completed");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn what_was_handed_to_nobody_goes_back_when_the_database_takes_it() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("gone", &[], 1).await;
    let gone = session(&db, "gone").await;
    let id = node.create("t", &[]).await;
    let mut place = Matchmaker::wait(&node.replica, Waiter::one(gone), false);
    let Answer::Tasks(handed) = place.answer(Duration::from_secs(10)).await else {
        panic!("it had nothing")
    };
    db.set_read_only("on").await;
    drop(handed);
    eventually("the database takes nothing", async || {
        let (_, told) = node.get("/readyz").await;
        told["database"].as_str()?.contains("read-only").then_some(())
    })
    .await;
    assert_eq!(node.task(&id).await["status"], "assigned");
    db.set_read_only("off").await;
    is_as_before(&node, &id, 1).await;
    node.stop().await;
}

#[tokio::test]
async fn a_long_poll_whose_client_has_gone_takes_nothing() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("gone", &[], 1).await;
    node.register("here", &[], 1).await;
    let address = node.url.strip_prefix("http://").unwrap();
    let body = json!({"agent_id": "gone", "wait_secs": 50}).to_string();
    let request = format!(
        "POST /api/v1/tasks/dequeue HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut polls = Vec::new();
    for _ in 0..20 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        polls.push(stream);
    }
    // The server has them when a poll of theirs was the sign of life that the agent gave.
    let registered = session(&db, "gone").await;
    eventually("the polls have arrived", async || {
        let row = db
            .client
            .query_one(
                "select last_heartbeat_at > started_at from fleet.sessions where session_id = $1",
                &[&registered.0],
            )
            .await
            .unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    drop(polls);
    let id = node.create("t", &[]).await;
    let task = eventually("who is there has it", async || node.dequeue("here", 5).await).await;
    assert_eq!((&task["task_id"], &task["attempt"]), (&json!(id), &json!(1)));
    node.complete(&task, "here").await;
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn requests_dropped_at_random_moments_lose_no_task_and_cost_no_attempt() {
    let db = Db::new().await;
    let node =
        Node::start(&db, "r", "[tasks]\nretry_backoff = \"10ms\"\nmax_retries = 100\n").await;
    const TASKS: usize = 60;
    node.register("moody", &[], 100).await;
    let mut received = 0;
    for n in 0..TASKS {
        let poll = node.dequeue("moody", 5);
        let create = async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            node.create("t", &[]).await;
        };
        let patience = Duration::from_micros(rand::random_range(0..12_000));
        let (got, ()) = tokio::join!(tokio::time::timeout(patience, poll), create);
        if let Ok(Some(task)) = got {
            assert_eq!(node.complete(&task, "moody").await.0.as_u16(), 200, "round {n}");
            received += 1;
        }
    }
    // Replies that were on their way when their caller left stand until the session ends.
    node.register("moody", &[], 1).await;
    node.register("patient", &[], 1).await;
    while received < TASKS {
        let task =
            eventually("there is a task left", async || node.dequeue("patient", 2).await).await;
        assert_eq!(node.complete(&task, "patient").await.0.as_u16(), 200);
        received += 1;
    }
    assert!(node.dequeue("patient", 0).await.is_none());
    let completed = db.count("select count(*) from fleet.tasks where status = 'completed'").await;
    assert_eq!(usize::try_from(completed).unwrap(), TASKS);
    // What was undone was never counted; everything else was, once.
    let miscounted = db
        .count(
            "select count(*) from fleet.tasks t
              where t.attempt <> (select count(*) filter (where e.type = 'claimed') - count(*) filter (where e.type = 'undone')
                                    from fleet.task_events e where e.task_id = t.task_id)
                 or t.attempt <> 1 + (select count(*) from fleet.task_events e where e.task_id = t.task_id and e.type = 'lost')",
        )
        .await;
    assert_eq!(miscounted, 0);
    db.check_history().await;
    node.stop().await;
}
