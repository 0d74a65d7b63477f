//! Loops whose looks become dear, as they do behind an old snapshot, look less often.

use std::{sync::Arc, time::Duration};

use agent_fleet::model::{ExecutionMode, TaskId};

use crate::support::{
    db::Db,
    eventually,
    fleet::{create, task},
    node::Node,
};

/// How long a look takes at least.
const LOOK: Duration = Duration::from_millis(200);
/// How long nothing is looked at after it, at least, in seconds: looks take a fiftieth of the time at most, and chance takes a
/// quarter off a pause at most.
const PAUSE: f64 = 50.0 * LOOK.as_secs_f64() * 0.75;

/// Holds the next look up whose statement has these words.
async fn hold_up(db: &Db, words: &str) {
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute("lock table fleet.lanes in access exclusive mode").await.unwrap();
    let looks = format!(
        "select count(*) from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock' and query like '%{words}%'"
    );
    eventually("it looks", async || (db.count(&looks).await == 1).then_some(())).await;
    tokio::time::sleep(LOOK).await;
    tx.commit().await.unwrap();
}

/// Seconds from a task's creation to its first event of this type.
async fn waited(db: &Db, id: TaskId, event: &str) -> f64 {
    let sql = "select extract(epoch from e.at - c.at)::float8
                 from fleet.task_events c join fleet.task_events e using (task_id)
                where task_id = $1 and c.type = 'created' and e.type = $2";
    db.rows(sql, &[&id.0, &event]).await[0].get(0)
}

#[tokio::test]
async fn the_poll_pauses_for_long_after_a_long_look() {
    let db = Db::new().await;
    let node = Arc::new(Node::start(&db, "r", "[dispatch]\ninterval = \"1h\"\n").await);
    node.register("a", &["agent:x"], 1).await;
    // So its lane is known.
    node.create("the first one", &["agent:x"]).await;
    let first = node.dequeue("a", 5).await.unwrap();
    node.complete(&first, "a").await;
    let poll = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.dequeue("a", 50).await }
    });
    node.until_polled().await;
    hold_up(&db, "all lanes, to be remembered").await;
    // Nobody is told of it.
    let id = create(&db.store(), task(&["agent:x"], ExecutionMode::HttpPull), 1).await[0];
    assert_eq!(poll.await.unwrap().unwrap()["task_id"], id.to_string());
    let waited = waited(&db, id, "claimed").await;
    assert!(waited >= PAUSE, "{waited} s");
}

#[tokio::test]
async fn phase_2_pauses_for_long_after_a_long_look() {
    let db = Db::new().await;
    let quick = "[dispatch]\ninterval = \"200ms\"\nundecided_grace = \"1s\"\n";
    let node = Node::start(&db, "r", quick).await;
    hold_up(&db, "phase 2: tasks that have waited undecided").await;
    let id = node.create("nobody's", &["agent:web"]).await;
    eventually("it is left to pull", async || {
        (node.task(&id).await["execution_mode"] == "http_pull").then_some(())
    })
    .await;
    let waited = waited(&db, TaskId(id.parse().unwrap()), "decided").await;
    assert!(waited >= PAUSE, "{waited} s");
}
