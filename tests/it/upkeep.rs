//! What the loops do when nobody looks: little while there is nothing to do, and what nobody needs goes.

use std::time::{Duration, Instant};

use agent_fleet::model::{ExecutionMode as Mode, TaskId};
use serde_json::json;

use crate::{
    dispatch::{dir, local},
    support::{
        db::{Db, sql},
        eventually,
        fleet::{agent, create, operator, pull, task},
        node::Node,
    },
};

const DAY_OLD: &str = "update fleet.lanes set seen_at = now() - interval '25 hours'";
const HOUR_OLD: &str = "update fleet.lanes set seen_at = now() - interval '61 minutes'";

#[tokio::test]
async fn a_lane_that_nothing_refers_to_for_a_day_is_dropped() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&["agent:used"], Mode::Undecided), 1).await;
    let sets = [vec!["agent:paused".to_owned()], vec!["agent:idle".to_owned()]];
    store.intern_lanes(sets.iter().map(Vec::as_slice)).await.unwrap();
    db.execute("update fleet.lanes set paused_at = now() where capabilities = '{agent:paused}'")
        .await;
    assert_eq!(store.retire_lanes().await.unwrap(), 0, "not within a day");
    db.execute(DAY_OLD).await;
    assert_eq!(store.retire_lanes().await.unwrap(), 1);
    assert_eq!(store.retire_lanes().await.unwrap(), 0, "the used one is looked at once a day");
    assert_eq!(store.delete_retired_lanes().await.unwrap(), 0, "not within the hour");
    db.execute(HOUR_OLD).await;
    // Transactions of other databases count, too.
    eventually("older transactions are over", async || {
        (store.delete_retired_lanes().await.unwrap() == 1).then_some(())
    })
    .await;
    let left = db.rows("select capabilities from fleet.lanes order by lane_id", &[]).await;
    let left: Vec<Vec<String>> = left.iter().map(|r| r.get(0)).collect();
    assert_eq!(left, [["agent:used"], ["agent:paused"]]);
}

#[tokio::test]
async fn a_lane_is_not_dropped_under_a_task_that_is_just_being_made() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &["agent:x"], 5).await;
    store.intern_lanes([vec!["agent:x".to_owned()]].iter().map(Vec::as_slice)).await.unwrap();
    db.execute(DAY_OLD).await;
    // Somebody has read the lane and refers to it, and has not committed yet: nobody sees it.
    let mut other = db.connect().await;
    let making = other.transaction().await.unwrap();
    making
        .batch_execute("insert into fleet.tasks (key, lane_id) select 'k', lane_id from fleet.lanes;
                        insert into fleet.task_specs (task_id, title, capabilities) select task_id, 't', '{agent:x}' from fleet.tasks;
                        insert into fleet.task_events (task_id, type, to_status, actor) select task_id, 'created', 'created', 'sql' from fleet.tasks")
        .await
        .unwrap();
    assert_eq!(store.retire_lanes().await.unwrap(), 1);
    db.execute(HOUR_OLD).await;
    assert_eq!(store.delete_retired_lanes().await.unwrap(), 0, "an older transaction is open");
    making.commit().await.unwrap();
    eventually("it is taken back", async || {
        assert_eq!(store.delete_retired_lanes().await.unwrap(), 0, "it is in use after all");
        let back = db.count("select count(*) from fleet.lanes where retired_xid is null").await;
        (back == 1).then_some(())
    })
    .await;
    assert!(pull(&store, session).await.is_some());
    db.check_history().await;
}

#[tokio::test]
async fn a_retired_lane_is_given_to_no_new_task_until_it_is_interned_again() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &["agent:x"], 5).await;
    store.intern_lanes([vec!["agent:x".to_owned()]].iter().map(Vec::as_slice)).await.unwrap();
    db.execute(DAY_OLD).await;
    assert_eq!(store.retire_lanes().await.unwrap(), 1);
    // Interned by the creation, it is back before the task refers to it.
    create(&store, task(&["agent:x"], Mode::Undecided), 1).await;
    let dangling = "select count(*) from fleet.tasks t join fleet.lanes l using (lane_id)
                         where l.retired_xid is not null and t.status = 'created'";
    assert_eq!(db.count(dangling).await, 0);
    db.execute(HOUR_OLD).await;
    assert_eq!(store.delete_retired_lanes().await.unwrap(), 0);
    assert!(pull(&store, session).await.is_some());
    // Nor to one by a replica that remembers the lane.
    db.execute("update fleet.lanes set retired_xid = pg_current_xact_id()").await;
    create(&store, task(&["agent:x"], Mode::Undecided), 1).await;
    assert_eq!(db.count(dangling).await, 0);
    store.intern_laneless().await.unwrap();
    assert!(pull(&store, session).await.is_some());
    // One that was referred to without a lane gets it from the scheduler, back in use.
    let id: TaskId = create(&store, task(&[], Mode::Undecided), 1).await[0];
    db.execute("update fleet.lanes set retired_xid = pg_current_xact_id()").await;
    db.execute(&format!("update fleet.tasks set lane_id = null where task_id = '{id}'")).await;
    assert!(store.read_due(Duration::ZERO).await.unwrap().laneless);
    assert_eq!(store.intern_laneless().await.unwrap(), 1);
    assert_eq!(db.count(dangling).await, 0);
    assert_eq!(pull(&store, session).await.map(|held| held.task_id), Some(id));
}

#[tokio::test]
async fn one_look_tells_what_is_due_and_when_something_will_be() {
    let db = Db::new().await;
    let store = db.store();
    let look = async || store.read_due(Duration::from_secs(60)).await.unwrap();
    let nothing = look().await;
    assert_eq!(
        (nothing.scheduled, nothing.pins, nothing.deadlines, nothing.laneless),
        (false, false, false, false)
    );
    assert_eq!(nothing.next, None);
    let ids = create(&store, task(&[], Mode::Undecided), 3).await;
    let session = agent(&store, "a", &[], 5).await;
    let held = pull(&store, session).await.unwrap();
    assert_eq!(look().await.next, None, "in an hour");
    let soon = async |column: &str, secs: u64| {
        db.execute(&format!(
            "update fleet.tasks set {column} = now() + interval '{secs} s' where {column} is not null"
        ))
        .await;
        let next = look().await.next.unwrap();
        let secs = Duration::from_secs(secs);
        assert!(secs - Duration::from_secs(2) < next && next <= secs, "{column}: {next:?}");
    };
    soon("deadline_at", 4).await;
    let rest: Vec<TaskId> = ids.into_iter().filter(|id| *id != held.task_id).collect();
    let minute = Duration::from_secs(60);
    store.assign_task(rest[0], "a", Mode::HttpPull, minute, &operator()).await.unwrap().unwrap();
    soon("pinned_until", 3).await;
    db.execute("update fleet.tasks set pinned_until = now() where pinned_until is not null").await;
    assert!(look().await.pins);
    db.execute(&format!(
        "update fleet.tasks set status = 'scheduled', run_at = now() where task_id = '{}'",
        rest[1]
    ))
    .await;
    assert!(look().await.scheduled);
    db.execute("update fleet.tasks set deadline_at = now() where holder is not null").await;
    assert!(look().await.deadlines);
    // A run on a host is its follower's to judge, for a while.
    db.execute("update fleet.tasks set host_agent_id = 1 where holder is not null").await;
    assert!(!look().await.deadlines);
}

#[tokio::test]
async fn a_replica_makes_the_partitions_that_are_missing() {
    let db = Db::new().await;
    let all = "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
                where i.inhparent in ('fleet.task_events'::regclass, 'fleet.task_logs'::regclass)
                order by right(c.relname, 7) desc";
    let names =
        async || -> Vec<String> { db.rows(all, &[]).await.iter().map(|row| row.get(0)).collect() };
    let before = names().await;
    // The last two weeks of both.
    for name in &before[..4] {
        db.execute(&format!("drop table fleet.{name}")).await;
    }
    let node = Node::start(&db, "r", "").await;
    eventually("they are there again", async || {
        let now = names().await;
        before.iter().all(|name| now.contains(name)).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn who_holds_back_vacuum_is_named() {
    let db = Db::new().await;
    let store = db.store();
    let mut other = db.connect().await;
    other.batch_execute("set application_name = 'report-of-doom'").await.unwrap();
    let old = other.transaction().await.unwrap();
    let pid: i32 =
        old.query_one("select pg_backend_pid(), pg_current_xact_id()", &[]).await.unwrap().get(0);
    assert_eq!(store.list_vacuum_blockers(Duration::from_secs(300)).await.unwrap(), []);
    // As an account that may see when it began.
    let text = sql("list_vacuum_blockers");
    let found = eventually("it is old enough", async || {
        let found = db.rows(text, &[&0.0_f64]).await;
        found.into_iter().find(|row| row.get::<_, Option<i32>>("pid") == Some(pid))
    })
    .await;
    assert_eq!(found.get::<_, &str>("kind"), "transaction");
    assert_eq!(found.get::<_, &str>("name"), "report-of-doom");
    assert!(found.get::<_, f64>("age_secs") >= 0.0);
    old.rollback().await.unwrap();
}

#[tokio::test]
async fn an_idle_replica_asks_little() {
    let (db, dir) = (Db::new().await, dir());
    let toml =
        format!("[dispatch]\ninterval = \"10s\"\n{}", local(&dir, "true", 1, &["agent:code"]));
    let node = Node::start(&db, "r", &toml).await;
    node.until_host("h", "online").await;
    node.register("a", &[], 1).await;
    let committed = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
    let poll = node.dequeue("a", 40);
    let count = async {
        // What starting cost has been counted by then: connections that go idle tell of it after 10 s.
        tokio::time::sleep(Duration::from_secs(11)).await;
        let (before, since) = (db.count(committed).await, Instant::now());
        tokio::time::sleep(Duration::from_secs(12)).await;
        let (after, secs) = (db.count(committed).await, since.elapsed().as_secs_f64());
        let rate = (after - before) as f64 / secs;
        node.must("/api/v1/tasks", json!({"title": "enough", "execution_mode": "http_pull"})).await;
        rate
    };
    let (got, rate) = tokio::join!(poll, count);
    assert!(got.is_some());
    assert!(rate <= 5.0, "{rate} transactions a second while idle");
    node.stop().await;
}
