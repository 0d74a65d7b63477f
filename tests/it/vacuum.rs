//! The queue's table is vacuumed at the queue's own pace.

use agent_fleet::{model::ExecutionMode as Mode, store::Store};
use serde_json::json;

use crate::support::{
    db::Db,
    eventually,
    fleet::{create, task},
    node::Node,
};

const TASKS: usize = 2_100;
/// In the way of what is taken of them: no version of a row stays.
const CHANGE: &str = "update fleet.tasks set priority = (priority + 1) % 4";
const LAST: &str = "select pg_stat_get_last_vacuum_time('fleet.tasks'::regclass)::text";

/// Tasks in a database where autovacuum does not come to them.
async fn tasks(db: &Db, store: &Store) {
    db.execute("alter table fleet.tasks set (autovacuum_enabled = off)").await;
    create(store, task(&[], Mode::Undecided), TASKS).await;
    db.execute("vacuum fleet.tasks").await;
}

#[tokio::test]
async fn it_is_vacuumed_when_it_is_due_by_who_may() {
    let db = Db::new().await;
    let (owner, app) = (db.owners_store(), db.store());
    tasks(&db, &app).await;
    db.execute(CHANGE).await;
    // Not at once after the last one.
    let due = async || owner.vacuum_tasks(2_000).await.unwrap();
    assert!(!eventually("it is due", due).await.in_vain);
    assert_eq!(due().await, None);

    let snapshot = "begin isolation level repeatable read; select from fleet.tasks limit 1";
    let other = db.connect().await;
    other.batch_execute(snapshot).await.unwrap();
    db.execute(CHANGE).await;
    assert!(eventually("it is due again", due).await.in_vain);
    other.batch_execute("rollback").await.unwrap();
    assert!(!eventually("it is due still", due).await.in_vain);

    // From here on long enough ago.
    let ago = "select extract(epoch from now() - pg_stat_get_last_vacuum_time('fleet.tasks'::regclass))::bigint";
    eventually("some time has passed", async || (db.count(ago).await >= 2).then_some(())).await;
    assert_eq!(owner.vacuum_tasks(200).await.unwrap(), None, "few for so many pages");
    assert_eq!(app.vacuum_tasks(2_000).await.unwrap(), None, "it is not its table");
    // As a rule autovacuum has it.
    let lock = "begin; lock table fleet.tasks in share update exclusive mode";
    other.batch_execute(lock).await.unwrap();
    assert_eq!(due().await, None);
    other.batch_execute("rollback").await.unwrap();
    assert!(due().await.is_some());
    db.check_history().await;
}

#[tokio::test]
async fn a_replica_that_claims_much_vacuums() {
    let db = Db::empty().await;
    let store = db.store();
    store.migrate().await.unwrap();
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 10_000).await;
    tasks(&db, &store).await;
    let vacuumed = async || db.rows(LAST, &[]).await[0].get::<_, Option<String>>(0);
    let before = vacuumed().await;
    for _ in 0..TASKS / 50 {
        let body = json!({"agent_id": "a", "wait_secs": 0, "max_tasks": 50});
        let claimed = node.must("/api/v1/tasks/dequeue", body).await;
        assert_eq!(claimed["tasks"].as_array().unwrap().len(), 50);
    }
    eventually("it is vacuumed", async || (vacuumed().await != before).then_some(())).await;
    db.check_history().await;
    node.stop().await;
}
