//! Heartbeats with a list of what the agent works on: what it has lost sight of goes back, nothing else does.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use agent_fleet::{
    model::{ExecutionMode as Mode, Lease, SessionId, TaskId},
    store::{AgentBeat, Heard, HeldLease, Outcome, Store, Waiter},
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    api::is_error,
    db::Db,
    eventually,
    fleet::{agent, create, end, next, pull, task},
    node::Node,
};

async fn beat(node: &Node, running: Value) -> Value {
    node.must("/api/v1/agents/heartbeat", json!({"agent_id": "a", "running": running})).await
}

/// A heartbeat that arrived so long ago.
async fn beat_of(store: &Store, session: SessionId, running: &[TaskId], age: Duration) -> Heard {
    let arrived = Instant::now().checked_sub(age).unwrap();
    let beat = AgentBeat { session, running: Some(running.to_vec()), arrived };
    store.beat_agents(&[beat]).await.unwrap().remove(0).unwrap()
}

async fn dropped(store: &Store, session: SessionId, running: &[TaskId]) -> Vec<(TaskId, Lease)> {
    beat_of(store, session, running, Duration::ZERO).await.dropped
}

fn named(held: HeldLease) -> (TaskId, Lease) {
    (held.task_id, held.lease)
}

/// Soon a replica that has been there for long enough.
const QUICK: &str = "[lease]\nreplica_ttl = \"500ms\"\n";

async fn until_it_judges(node: &Node) {
    eventually("it has been there for long enough", async || {
        node.replica.can_judge().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_has_just_come_goes_by_no_list() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 1).await;
    let id = node.create("t", &[]).await;
    node.dequeue("a", 0).await.unwrap();
    // All coordinators were away, and with them the answer to its claim; it has not come to ask again yet.
    for _ in 0..3 {
        beat(&node, json!([])).await;
        assert_eq!(node.task(&id).await["status"], "assigned");
    }
    node.stop().await;
}

#[tokio::test]
async fn what_two_lists_in_a_row_do_not_name_goes_back() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", QUICK).await;
    until_it_judges(&node).await;
    node.register("a", &[], 5).await;
    let kept = node.create("kept", &[]).await;
    let body = json!({"title": "missing", "key": "org/repo#1", "max_retries": 3});
    let missing = node.must("/api/v1/tasks", body).await["task_id"].clone();
    let missing = missing.as_str().unwrap();
    for _ in 0..2 {
        node.dequeue("a", 0).await.unwrap();
    }
    let is_held = async |id: &str| {
        let task = node.task(id).await;
        assert_eq!((&task["status"], &task["lease"]), (&json!("assigned"), &json!(1)), "{task}");
    };
    // One list is not enough: the task was leased after the heartbeat before, if there was one.
    assert_eq!(beat(&node, json!([kept])).await["lost"], json!([]));
    is_held(missing).await;
    // Named again, here by its key, it is in sight again.
    beat(&node, json!([kept, "org/repo#1"])).await;
    beat(&node, json!([kept])).await;
    is_held(missing).await;
    // A heartbeat without a list says nothing of it.
    node.must("/api/v1/agents/heartbeat", json!({"agent_id": "a"})).await;
    beat(&node, json!([kept])).await;
    is_held(missing).await;

    beat(&node, json!([kept])).await;
    is_held(&kept).await;
    let task = node.task(missing).await;
    assert_eq!((&task["retry_count"], &task["lease"]), (&json!(1), &json!(1)), "{task}");
    assert_eq!(task["events"].as_array().unwrap().last().unwrap()["type"], "lost");
    // What it lists and does not hold, or nobody knows, is lost.
    let told = beat(&node, json!([missing, kept, "org/repo#1", "no-such-key"])).await;
    assert_eq!(told["lost"], json!([missing, "org/repo#1", "no-such-key"]));
    // Somebody else's as well.
    node.register("b", &[], 1).await;
    let again = node.dequeue("b", 10).await.unwrap();
    assert_eq!((&again["task_id"], &again["lease"]), (&json!(missing), &json!(2)));
    assert_eq!(beat(&node, json!([missing, kept])).await["lost"], json!([missing]));
    assert_eq!(node.complete(&again, "b").await.0.as_u16(), 200);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn only_what_was_leased_when_the_heartbeat_before_arrived_is_dropped() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 1).await;
    let session = agent(&store, "a", &[], 2).await;
    let held = pull(&store, session).await.unwrap();
    // It arrived before the claim, and was kept waiting by a busy database.
    assert!(beat_of(&store, session, &[], Duration::from_secs(60)).await.dropped.is_empty());
    assert_eq!(dropped(&store, session, &[]).await, [], "leased since then");
    assert_eq!(dropped(&store, session, &[]).await, [named(held)]);
}

#[tokio::test]
async fn another_lease_of_the_same_task_is_another_matter() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 1).await;
    let session = agent(&store, "a", &[], 2).await;
    let first = pull(&store, session).await.unwrap();
    assert_eq!(dropped(&store, session, &[]).await, []);
    end(&store, first, Outcome::Undone).await;
    let second = pull(&store, session).await.unwrap();
    assert_eq!(second.lease, next(first.lease));
    assert_eq!(dropped(&store, session, &[]).await, [], "the list before speaks of another lease");
    assert_eq!(dropped(&store, session, &[]).await, [named(second)]);
}

#[tokio::test]
async fn a_task_that_was_called_off_and_is_held_again_is_not_called_off_again() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 1).await;
    let id = node.create("t", &[]).await;
    node.dequeue("a", 0).await.unwrap();
    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    assert_eq!(beat(&node, json!([id])).await["cancel"], json!([id]));
    node.must(&format!("/api/v1/tasks/{id}/retry"), json!({})).await;
    assert_eq!(beat(&node, json!([])).await["cancel"], json!([id]), "until it has it again");
    assert_eq!(node.dequeue("a", 0).await.unwrap()["lease"], 2);
    let heard = beat(&node, json!([id])).await;
    assert_eq!((&heard["cancel"], &heard["lost"]), (&json!([]), &json!([])));
    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    let told = &beat(&node, json!([id])).await["cancel"];
    assert!(told.as_array().unwrap().contains(&json!(id)), "{told}");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn what_is_in_a_reply_still_being_written_is_not_dropped() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", QUICK).await;
    until_it_judges(&node).await;
    node.register("a", &[], 1).await;
    let id = node.create("t", &[]).await;
    let task = node.dequeue("a", 0).await.unwrap();
    let task_id = TaskId(id.parse().unwrap());
    let reply = node.replica.replies.open(task_id, Lease(task["lease"].as_i64().unwrap()));
    for _ in 0..3 {
        beat(&node, json!([])).await;
        assert_eq!(node.task(&id).await["status"], "assigned");
    }
    drop(reply);
    beat(&node, json!([])).await;
    assert_eq!(node.task(&id).await["retry_count"], 1);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn heartbeats_that_arrive_together_are_each_answered_with_their_own() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    for n in 0..20 {
        node.register(&format!("a{n}"), &[], 1).await;
        node.create("t", &[]).await;
        node.dequeue(&format!("a{n}"), 0).await.unwrap();
    }
    node.must("/api/v1/agents/deregister", json!({"agent_id": "a7"})).await;
    // Each twice: of two of one session, the second waits its turn.
    join_all((0..40).map(async |n: usize| {
        let n = n % 20;
        let body =
            json!({"agent_id": format!("a{n}"), "running": [format!("only-{n}-lists-this")]});
        let (status, reply) = node.post("/api/v1/agents/heartbeat", body.clone()).await;
        if n == 7 {
            is_error("it has ended", status, &reply, 409, "session_ended");
        } else {
            assert_eq!((status.as_u16(), &reply["lost"]), (200, &body["running"]), "{reply}");
        }
    }))
    .await;
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn the_end_of_a_poll_is_no_sign_of_life() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("frozen", &[], 1).await;
    node.register("other", &[], 1).await;
    let heard = "select extract(epoch from clock_timestamp() - last_heartbeat_at)::bigint
                   from fleet.sessions where subject = ";
    // It stands still while its poll waits; that the answer goes out says nothing about it.
    assert!(node.dequeue("frozen", 3).await.is_none());
    assert!(node.dequeue("other", 0).await.is_none());
    eventually("what was heard since is stored", async || {
        (db.count(&format!("{heard}'other'")).await < 2).then_some(())
    })
    .await;
    assert!(db.count(&format!("{heard}'frozen'")).await >= 2);
    node.stop().await;
}

/// Each write leaves a dead row, and what is dead stays while an old snapshot is held.
#[tokio::test]
async fn an_agent_that_calls_all_the_time_is_written_now_and_then() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("busy", &[], 1).await;
    let heard = "select extract(epoch from last_heartbeat_at)::text from fleet.sessions where subject = 'busy'";
    let mut written: HashSet<String> = HashSet::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert!(node.dequeue("busy", 0).await.is_none());
        written.insert(db.client.query_one(heard, &[]).await.unwrap().get(0));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(written.len(), 2, "when it registered, and its first call: {written:?}");
    let last = "select count(*) from fleet.sessions
                 where subject = 'busy' and last_heartbeat_at > started_at + interval '3 seconds'";
    eventually("its last call is written in the end", async || {
        (db.count(last).await > 0).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn nor_is_a_claim_for_a_poll_that_waits() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "frozen", &["agent:x"], 1).await;
    create(&store, task(&["agent:x"], Mode::HttpPull), 1).await;
    // So long ago that the claim itself writes its sign of life.
    db.execute("update fleet.sessions set last_heartbeat_at = now() - ttl / 2").await;
    let asked = Instant::now().checked_sub(Duration::from_secs(600)).unwrap();
    let waiter = Waiter { asked, ..Waiter::one(session) };
    let claims = store.claim_for_agents(&[waiter], true).await.unwrap();
    assert_eq!(claims.claimed.len(), 1);
    let heard = "select extract(epoch from now() - last_heartbeat_at)::bigint from fleet.sessions";
    assert!((600..660).contains(&db.count(heard).await));
}

#[tokio::test]
async fn a_heartbeat_revives_no_session_that_has_ended() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &[], 1).await;
    store.end_session(session, "silent").await.unwrap();
    let row =
        async || -> String { db.rows("select s::text from fleet.sessions s", &[]).await[0].get(0) };
    let before = row().await;
    let beat = AgentBeat { session, running: Some(Vec::new()), arrived: Instant::now() };
    assert!(store.beat_agents(&[beat]).await.unwrap()[0].is_none());
    assert_eq!(row().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_task_that_somebody_has_locked_keeps_no_other_and_no_heartbeat() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", QUICK).await;
    node.register("a", &[], 3).await;
    let mut ids = Vec::new();
    for title in ["one", "two", "three"] {
        ids.push(node.create(title, &[]).await);
        node.dequeue("a", 5).await.unwrap();
    }
    until_it_judges(&node).await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    let lock = format!("select from fleet.tasks where task_id = '{}' for update", ids[1]);
    tx.batch_execute(&lock).await.unwrap();
    beat(&node, json!([])).await;
    beat(&node, json!([])).await;
    let held = "select count(*) from fleet.tasks where holder is not null";
    assert_eq!(db.count(held).await, 1, "the others are free");
    tx.rollback().await.unwrap();
    beat(&node, json!([])).await;
    assert_eq!(db.count(held).await, 0);
    db.check_history().await;
    node.stop().await;
}
