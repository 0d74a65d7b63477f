//! Retention: what ended long ago goes, in bounded batches; what lives stays.

use std::time::{Duration, Instant};

use agent_fleet::{model::TaskId, store::Store};
use uuid::Uuid;

use crate::support::{
    db::Db,
    eventually,
    fleet::{HOUR, agent, complete, create, pull, replica, task},
    node::Node,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Walks to the end; how many were forgotten.
async fn purge(store: &Store, retention: Duration) -> i64 {
    let (mut place, mut purged) = (TaskId(Uuid::nil()), 0);
    loop {
        let step = store.purge_tasks(retention, place).await.unwrap();
        purged += step.purged;
        match step.last {
            Some(last) => place = last,
            None => return purged,
        }
    }
}

/// Moves everything into the past, ids included, as if it had happened then.
async fn age(db: &Db, days: i32) {
    db.execute(&format!(
        "create temp table ids as
           select task_id as id, (encode(substring(int8send(floor(extract(epoch from created_at - interval '{days} days') * 1000)
                                                            ::bigint) from 3), 'hex') || substring(replace(task_id::text, '-', '') from 13))::uuid as old
             from fleet.tasks;
         update fleet.task_specs s set task_id = old from ids where s.task_id = id;
         update fleet.receipts r set task_id = old from ids where r.task_id = id;
         update fleet.tasks t set task_id = old, created_at = created_at - interval '{days} days',
                completed_at = completed_at - interval '{days} days', last_activity_at = last_activity_at - interval '{days} days'
           from ids where t.task_id = id;
         drop table ids"
    ))
    .await;
}

#[tokio::test]
async fn ended_tasks_go_with_all_that_hangs_on_them_and_live_ones_stay() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &[], 9).await;
    create(&store, task(&[], agent_fleet::model::ExecutionMode::Undecided), 5).await;
    for _ in 0..3 {
        let held = pull(&store, session).await.unwrap();
        complete(&store, held).await;
    }
    pull(&store, session).await.unwrap();
    assert_eq!(purge(&store, DAY).await, 0, "nothing is old");
    age(&db, 3).await;
    // An issue's task stays while its issue is open, or has news.
    db.execute(
        "update fleet.tasks set source = 'forgejo', issue_open = true, issue_version = 1, key = 'open'
          where task_id = (select task_id from fleet.tasks where status = 'completed' order by task_id limit 1)",
    )
    .await;
    db.execute(
        "update fleet.tasks set source = 'forgejo', issue_open = false, issue_version = 1, key = 'news'
          where task_id = (select task_id from fleet.tasks where status = 'completed' and key is distinct from 'open' order by task_id limit 1);
         insert into fleet.forge_issues (key, version, updated_at, body_hash, state) values ('news', 2, now(), '', '{}')",
    )
    .await;
    assert_eq!(purge(&store, 4 * DAY).await, 0, "not old enough");
    assert_eq!(purge(&store, DAY).await, 1);
    assert_eq!(purge(&store, DAY).await, 0, "a second time changes nothing");
    db.execute(
        "update fleet.tasks set issue_open = false, issue_version = 2 where source = 'forgejo'",
    )
    .await;
    assert_eq!(purge(&store, DAY).await, 2);
    assert_eq!(
        db.count("select count(*) from fleet.tasks").await,
        2,
        "the ready one and the held one"
    );
    for table in ["task_specs", "receipts"] {
        let orphans = format!(
            "select count(*) from fleet.{table} where task_id not in (select task_id from fleet.tasks)"
        );
        assert_eq!(db.count(&orphans).await, 0, "{table}");
    }
    assert_eq!(
        db.count("select count(*) from fleet.forge_issues").await,
        1,
        "by it an old delivery is known to be old"
    );
}

#[tokio::test]
async fn two_replicas_purge_beside_each_other_and_beside_who_holds_a_row() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &[], 9).await;
    create(&store, task(&[], agent_fleet::model::ExecutionMode::Undecided), 3).await;
    for _ in 0..3 {
        let held = pull(&store, session).await.unwrap();
        complete(&store, held).await;
    }
    age(&db, 3).await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute("select from fleet.tasks order by task_id limit 1 for update").await.unwrap();
    let two = db.store();
    let (one, two) = tokio::join!(purge(&store, DAY), purge(&two, DAY));
    assert_eq!(one + two, 2, "nobody waits for the row that is held");
    tx.rollback().await.unwrap();
    assert_eq!(purge(&store, DAY).await, 1);
}

#[tokio::test]
async fn deliveries_keys_and_sessions_go_when_they_are_old() {
    let db = Db::new().await;
    let store = db.store();
    agent(&store, "a", &[], 1).await;
    replica(&store, "old", &[]).await;
    replica(&store, "live", &[]).await;
    db.execute(
        "insert into fleet.webhook_deliveries (delivery_id, body_hash, event, action, result, received_at)
         select n::text, '', 'issues', 'opened', 'ignored', now() - interval '1 day' * n from generate_series(0, 2500) n;
         insert into fleet.idempotency_keys (idempotency_key, request_hash, task_ids, created_at)
         select n::text, '', '{}', now() - interval '1 day' * n from generate_series(0, 10) n;
         update fleet.sessions set ended_at = now() - interval '9 days', end_reason = 'x' where subject = 'old';
         update fleet.sessions set ended_at = now() - interval '9 days', end_reason = 'x' where subject = 'a';
         insert into fleet.sessions (kind, subject, ttl, ended_at) values ('agent', 'a', '1 s', now() - interval '9 days')",
    )
    .await;
    let mut rounds = 1;
    while store.delete_old_rows(4 * DAY + HOUR).await.unwrap() {
        rounds += 1;
    }
    assert!(rounds >= 3, "in batches");
    assert_eq!(db.count("select count(*) from fleet.webhook_deliveries").await, 5);
    assert_eq!(db.count("select count(*) from fleet.idempotency_keys").await, 5);
    let left = db.rows("select subject from fleet.sessions order by 1", &[]).await;
    let left: Vec<&str> = left.iter().map(|r| r.get(0)).collect();
    assert_eq!(
        left,
        ["a", "live"],
        "an agent's newest session stays, so that it can register again"
    );
    assert_eq!(db.count("select count(*) from fleet.replicas").await, 1);
}

/// Weekly partitions of the past: so many weeks ago.
async fn old_partition(db: &Db, parent: &str, weeks: i32) -> String {
    let row = &db
        .rows(
            "select to_char(date_trunc('week', now(), 'UTC') at time zone 'UTC' - interval '1 week' * $1::int, 'IYYY\"w\"IW'),
                    (date_trunc('week', now(), 'UTC') - interval '1 week' * $1::int)::text,
                    (date_trunc('week', now(), 'UTC') - interval '1 week' * ($1::int - 1))::text",
            &[&weeks],
        )
        .await[0];
    let (week, from, to): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let name = format!("{parent}_{week}");
    db.execute(&format!(
        "create table fleet.{name} partition of fleet.{parent} for values from ('{from}') to ('{to}');
         alter table fleet.{name} owner to fleet_maintenance"
    ))
    .await;
    name
}

#[tokio::test]
async fn old_partitions_are_dropped_whatever_state_they_were_left_in() {
    let db = Db::new().await;
    let store = db.store();
    let ahead = db.count("select count(*) from pg_inherits").await;
    let attached = old_partition(&db, "task_events", 5).await;
    let detached = old_partition(&db, "task_events", 6).await;
    let young = old_partition(&db, "task_logs", 2).await;
    db.execute(&format!("alter table fleet.task_events detach partition fleet.{detached}")).await;
    // A task that lives keeps none of them.
    let new = task(&[], agent_fleet::model::ExecutionMode::Undecided);
    let live = create(&store, new, 1).await[0];
    db.execute(&format!(
        "insert into fleet.task_events (task_id, type, actor, at)
         values ('{live}', 'updated', 'test', date_trunc('week', now(), 'UTC') - interval '34 days')"
    ))
    .await;
    // One whose detaching was broken off: somebody reads while it is detached.
    let pending = old_partition(&db, "task_logs", 7).await;
    let mut reader = db.connect().await;
    let tx = reader.transaction().await.unwrap();
    tx.batch_execute("select count(*) from fleet.task_logs").await.unwrap();
    let retention = 28 * DAY;
    let begun = Instant::now();
    let first = store.drop_old_partitions(retention).await.unwrap();
    // Whoever comes for the table meanwhile waits behind it: for 100 ms, not for the 5 s of other statements.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(first.left, std::slice::from_ref(&pending), "somebody reads it");
    assert!(first.dropped.contains(&attached) && first.dropped.contains(&detached), "{first:?}");
    let waits = db
        .rows(
            "select inhdetachpending from pg_inherits where inhrelid = $1::text::regclass",
            &[&format!("fleet.{pending}")],
        )
        .await;
    assert!(waits[0].get::<_, bool>(0), "it is half detached, as a killed replica would leave it");
    tx.rollback().await.unwrap();
    // Finished by two at once.
    let two = db.store();
    let (one, two) =
        tokio::join!(store.drop_old_partitions(retention), two.drop_old_partitions(retention));
    let (one, two) = (one.unwrap(), two.unwrap());
    eventually("it is gone", async || {
        store.drop_old_partitions(retention).await.unwrap().left.is_empty().then_some(())
    })
    .await;
    assert!(one.dropped.len() + two.dropped.len() <= 1, "{one:?} {two:?}");
    assert_eq!(
        db.count("select count(*) from pg_inherits").await,
        ahead + 2,
        "the young one and its index"
    );
    db.execute(&format!("select from fleet.{young}")).await;
    assert_eq!(store.get_task(live).await.unwrap().unwrap().task_id, live);
}

#[tokio::test]
async fn a_replica_does_it_by_itself() {
    let db = Db::new().await;
    let old = old_partition(&db, "task_events", 9).await;
    let node = Node::start(&db, "r", "").await;
    eventually("it is gone", async || {
        (db.count(&format!("select count(*) from pg_class where relname = '{old}'")).await == 0)
            .then_some(())
    })
    .await;
    node.stop().await;
}
