//! Wake-ups: hints over memory and NOTIFY, faster than the poll that is the truth behind them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{db::Db, eventually, node::Node};

/// The poll alone would take at least 1.5 s each time.
const ROUNDS: u32 = 6;
const LIMIT: Duration = Duration::from_millis(900);

/// Long-polls, does the act once the poll has begun to wait, and says how long the answer took from there.
async fn answered(
    waits_on: &Arc<Node>,
    agent: &'static str,
    act: impl AsyncFnOnce(),
) -> (Value, Duration) {
    let node = Arc::clone(waits_on);
    let poll = tokio::spawn(async move { node.dequeue(agent, 20).await });
    // It has looked once and found nothing.
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!poll.is_finished());
    act().await;
    let since = Instant::now();
    (poll.await.unwrap().unwrap(), since.elapsed())
}

#[tokio::test]
async fn every_commit_that_makes_something_ready_wakes_who_waits_on_another_replica() {
    let db = Db::new().await;
    let one = Arc::new(Node::start(&db, "r1", "").await);
    let two = Arc::new(Node::start(&db, "r2", "").await);
    for node in [&one, &two] {
        eventually("it listens", async || node.replica.listening().ok()).await;
    }
    one.register("a", &[], 1).await;
    let mut total = Duration::ZERO;
    for round in 0..ROUNDS {
        // Created.
        let (task, took) = answered(&one, "a", async || {
            two.create("t", &[]).await;
        })
        .await;
        total += took;
        // A slot freed by a receipt on the other replica.
        let next = two.create("next", &[]).await;
        let (task, took) = answered(&one, "a", async || {
            assert_eq!(two.complete(&task, "a").await.0.as_u16(), 200);
        })
        .await;
        assert_eq!(task["task_id"], next.as_str());
        total += took;
        // A slot freed by a cancellation, and a pin.
        let pinned = two.create("pinned", &["agent:other"]).await;
        let path = format!("/api/v1/tasks/{next}/cancel");
        two.must(&path, json!({})).await;
        let (task, took) = answered(&one, "a", async || {
            let path = format!("/api/v1/tasks/{pinned}/assign");
            two.must(&path, json!({"agent_id": "a", "force": true})).await;
        })
        .await;
        assert_eq!(task["task_id"], pinned.as_str());
        total += took;
        // Given back: released by its own holder, pinned no more.
        let lease = &task["lease"];
        let path = format!("/api/v1/tasks/{pinned}/release");
        two.must(&path, json!({"agent_id": "a", "lease": lease})).await;
        // Retried.
        let (task, took) = answered(&one, "a", async || {
            two.must(&format!("/api/v1/tasks/{next}/retry"), json!({})).await;
        })
        .await;
        assert_eq!(task["task_id"], next.as_str(), "round {round}");
        total += took;
        assert_eq!(two.complete(&task, "a").await.0.as_u16(), 200);
    }
    let mean = total / (4 * ROUNDS);
    assert!(mean < LIMIT, "{mean:?} on average: not woken, polled");
    db.check_history().await;
    for node in [one, two] {
        Arc::into_inner(node).unwrap().stop().await;
    }
}

#[tokio::test]
async fn after_a_lost_listener_it_listens_again_and_scans() {
    let db = Db::new().await;
    let node = Arc::new(Node::start(&db, "r", "").await);
    eventually("it listens", async || node.replica.listening().ok()).await;
    node.register("a", &[], 1).await;
    let ended = db
        .count(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where datname = current_database() and query = 'listen fleet_wake'",
        )
        .await;
    assert_eq!(ended, 1);
    let (task, _) = answered(&node, "a", async || {
        node.create("t", &[]).await;
    })
    .await;
    node.complete(&task, "a").await;
    eventually("it listens again", async || node.replica.listening().ok()).await;
    db.check_history().await;
    Arc::into_inner(node).unwrap().stop().await;
}

#[tokio::test]
async fn waiting_agents_cost_no_query_each() {
    let db = Db::new().await;
    let node = Arc::new(Node::start(&db, "r", "").await);
    let mut places = Vec::new();
    // A connection that goes idle tells its counts up to 10 s later; one that ends tells them at once.
    let registrar = db.store();
    for n in 0..200 {
        let session = crate::support::fleet::agent(&registrar, &format!("a{n}"), &[], 1).await;
        places.push(agent_fleet::coordinator::Matchmaker::wait(
            &node.replica,
            agent_fleet::store::Waiter::one(session),
            false,
        ));
    }
    registrar.close();
    eventually("the registrar has gone", async || {
        let left = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'agent-fleet/test'";
        (db.count(left).await == 0).then_some(())
    })
    .await;
    // A rate, so it needs a time: one poll for all of them every 2 s, and the loops.
    let commits = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
    let settle = async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        db.count(commits).await
    };
    let before = settle().await;
    let after = settle().await;
    assert!(after - before < 60, "{} transactions in 2 s for 200 waiting agents", after - before);
    drop(places);
    Arc::into_inner(node).unwrap().stop().await;
}
