//! Lanes: one for each distinct set of requirements, there before anything refers to it.

use agent_fleet::model::ExecutionMode as Mode;

use crate::support::{
    db::Db,
    eventually,
    fleet::{agent, create, create_all, host, pull, push, replica, task},
    node::Node,
};

#[tokio::test]
async fn the_same_set_is_the_same_lane() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&["agent:a", "agent:b", "bug"], Mode::Undecided), 2).await;
    create(&store, task(&["agent/b", "agent:a", "agent:a"], Mode::Undecided), 1).await;
    create(&store, task(&[], Mode::Undecided), 1).await;
    assert_eq!(db.count("select count(*) from fleet.lanes").await, 2);
    assert_eq!(db.count("select count(distinct lane_id) from fleet.tasks").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_intern_the_same_sets_once() {
    let db = Db::new().await;
    let adding: Vec<_> = (0..8)
        .map(|n| {
            let store = db.store();
            tokio::spawn(async move {
                let sets: Vec<Vec<String>> =
                    (0..50).map(|i| vec![format!("agent:{}", (i * (n + 1)) % 50)]).collect();
                store.intern_lanes(sets.iter().map(Vec::as_slice)).await.unwrap();
            })
        })
        .collect();
    for one in adding {
        one.await.unwrap();
    }
    assert_eq!(db.count("select count(*) from fleet.lanes").await, 50);
}

/// Its own statement, its own commit: a creation that comes to nothing leaves its lane, never a task without one.
#[tokio::test]
async fn a_lane_is_committed_before_the_tasks_that_refer_to_it() {
    let db = Db::new().await;
    let store = db.store();
    let keyed = |title: &str| agent_fleet::store::NewTask {
        key: Some("k".into()),
        title: title.into(),
        ..task(&["agent:first"], Mode::Undecided)
    };
    create(&store, keyed("one"), 1).await;
    let other = agent_fleet::store::NewTask {
        capabilities: vec!["agent:second".into()],
        ..keyed("another")
    };
    let refused = create_all(&store, vec![other]).await;
    assert!(matches!(refused, agent_fleet::store::Created::Conflict { .. }));
    assert_eq!(db.count("select count(*) from fleet.lanes").await, 2);
    assert_eq!(db.count("select count(*) from fleet.tasks where lane_id is null").await, 0);
}

const BY_SQL: &str = "
    with t as (insert into fleet.tasks (key) values ('by-sql') returning task_id, key)
    insert into fleet.task_specs (task_id, title, labels, capabilities)
    select task_id, key, '{agent:new}', '{agent:new}' from t;
    insert into fleet.task_events (task_id, type, to_status, actor)
    select task_id, 'created', 'created', 'sql:dba' from fleet.tasks where key = 'by-sql'";

#[tokio::test]
async fn a_task_by_plain_sql_becomes_claimable_after_its_commit() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &["agent:new"], 1).await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute(BY_SQL).await.unwrap();
    assert_eq!(store.intern_laneless().await.unwrap(), 0, "nobody sees it yet");
    // Nobody waits for that transaction either.
    create(&store, task(&["agent:new"], Mode::Undecided), 1).await;
    assert!(pull(&store, session).await.is_some());
    tx.commit().await.unwrap();
    let session = agent(&store, "b", &["agent:new"], 1).await;
    assert!(pull(&store, session).await.is_none(), "it has no lane yet");
    assert_eq!(store.intern_laneless().await.unwrap(), 1);
    let held = pull(&store, session).await.unwrap();
    assert_eq!(store.get_task(held.task_id).await.unwrap().unwrap().key, "by-sql");
    db.check_history().await;
}

#[tokio::test]
async fn the_scheduler_of_a_replica_does_so_and_undecided_is_the_columns_default() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &["agent:new"], 1).await;
    db.execute(&format!("begin; {BY_SQL}; commit")).await;
    let modes = db.rows("select execution_mode, created_mode, status from fleet.tasks", &[]).await;
    let words: Vec<String> = (0..3).map(|n| modes[0].get(n)).collect();
    assert_eq!(words, ["undecided", "undecided", "created"]);
    let task = eventually("it is claimed", async || node.dequeue("a", 1).await).await;
    assert_eq!((task["key"].as_str(), task["source"].as_str()), (Some("by-sql"), Some("sql")));
    assert_eq!(task["execution_mode"], "http_pull");
    node.complete(&task, "a").await;
    db.check_history().await;
    node.stop().await;
}

/// The oldest without a lane are not of the set that is found first.
#[tokio::test]
async fn more_laneless_tasks_of_two_sets_than_are_looked_at_get_their_lanes() {
    let db = Db::new().await;
    let store = db.store();
    for (labels, mode, count) in [("{agent:b}", "ssh_cli", 600), ("{agent:a}", "undecided", 2000)] {
        db.execute(&format!(
            "select fleet.enqueue('t', labels => '{labels}', execution_mode => '{mode}') from generate_series(1, {count})"
        ))
        .await;
    }
    let mut left = 2600;
    while left > 0 {
        let set = store.intern_laneless().await.unwrap();
        assert!(set > 0, "{left} stay without a lane");
        left -= set;
    }
    assert_eq!(db.count("select count(*) from fleet.tasks where lane_id is null").await, 0);
    db.check_history().await;
}

#[tokio::test]
async fn a_paused_lane_is_left_alone_by_both_claims() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&["agent:new"], Mode::Undecided), 1).await;
    let session = agent(&store, "a", &["agent:new"], 1).await;
    let hosts = [host("h", &["agent:new"], 1)];
    let (boot, slots) = replica(&store, "r", &hosts).await;
    db.execute("update fleet.lanes set paused_at = now()").await;
    assert!(pull(&store, session).await.is_none());
    assert!(push(&store, boot, &[slots["h"]]).await.is_empty());
    db.execute("update fleet.lanes set paused_at = null").await;
    assert!(pull(&store, session).await.is_some());
}
