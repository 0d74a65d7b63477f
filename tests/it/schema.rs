//! The schema and the sessions: migrated once whoever begins, checked at start, partitions ahead.

use agent_fleet::{
    coordinator::{Replica, StartError, make_executor},
    model::{ExecutionMode, TaskId},
    shutdown::Shutdown,
    store::{StoreError, migration_names},
};
use futures_util::future::join_all;

use crate::support::{
    db::Db,
    fleet::{agent, complete, create, pull, task},
    node::{Node, config},
};

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_race_their_migrations_ten_times() {
    for _ in 0..10 {
        let db = Db::empty().await;
        let migrations = join_all((0..3).map(|_| {
            let store = db.store();
            tokio::spawn(async move {
                let applied = store.migrate().await.unwrap().applied;
                store.check_schema().await.unwrap();
                applied.len()
            })
        }))
        .await;
        let applied: usize = migrations.into_iter().map(Result::unwrap).sum();
        assert_eq!(applied, migration_names().len(), "each is applied once");
        assert_eq!(db.count("select count(*) from fleet.identity").await, 1);
        let history = db.count("select count(*) from fleet.schema_history").await;
        assert_eq!(usize::try_from(history).unwrap(), migration_names().len());
    }
}

async fn start(db: &Db) -> Result<(), StartError> {
    let mut config = config("");
    config.database.url = Some(agent_fleet::config::Secret::new(db.url()));
    let replica = Replica::start(config, false, &make_executor, Shutdown::new()).await?;
    replica.stop(std::time::Duration::from_secs(10)).await;
    Ok(())
}

#[tokio::test]
async fn serve_refuses_a_schema_that_is_missing_or_older_or_other_and_tolerates_a_newer_one() {
    let db = Db::empty().await;
    let refused = async |db: &Db, word: &str| match start(db).await {
        Err(StartError::Store(StoreError::Schema(why))) => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}"),
    };
    refused(&db, "agent-fleet migrate").await;
    db.store().migrate().await.unwrap();
    start(&db).await.unwrap();
    db.execute(
        "insert into fleet.schema_history (version, name, applied_on, checksum)
         values (9999, 'from_the_future', '2030-01-01T00:00:00Z', '1')",
    )
    .await;
    start(&db).await.unwrap();
    db.execute("create table kept as select * from fleet.schema_history where version = 2").await;
    db.execute("update fleet.schema_history set checksum = '1' where version = 2").await;
    refused(&db, "is not the one").await;
    db.execute("delete from fleet.schema_history where version = 2").await;
    refused(&db, "lacks migration").await;
    db.execute("insert into fleet.schema_history select * from kept").await;
    start(&db).await.unwrap();
}

#[tokio::test]
async fn sessions_are_set_up_as_they_must_be_and_that_is_checked() {
    let db = Db::new().await;
    let node = Node::start(&db, "r-1", "").await;
    node.replica.store.check_settings().await.unwrap();
    let names = db
        .count("select count(*) from pg_stat_activity where application_name = 'agent-fleet/r-1'")
        .await;
    assert!(names > 0);
    node.stop().await;

    for (setting, value) in [
        ("statement_timeout", "15s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "5s"),
        ("client_connection_check_interval", "5s"),
    ] {
        let plain = db.rows(&format!("show {setting}"), &[]).await;
        assert_ne!(plain[0].get::<_, String>(0), value, "else this test shows nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_ahead_and_attached_also_by_two_replicas_at_once() {
    let db = Db::new().await;
    let ahead = std::time::Duration::from_secs(60 * 86_400);
    let store = db.store();
    assert_eq!(store.make_partitions(ahead).await.unwrap(), 0, "the migration made them");
    assert!(store.check_partitions().await.unwrap());
    // Half a year on.
    let later = std::time::Duration::from_secs(180 * 86_400);
    let (one, two) = (db.store(), db.store());
    let making =
        [one, two].map(|store| tokio::spawn(async move { store.make_partitions(later).await }));
    let mut made = Vec::new();
    for one in making {
        made.push(one.await.unwrap().unwrap());
    }
    made.sort_unstable();
    assert_eq!(made[0], 0, "one of them had nothing left to do");
    assert!(made[1] >= 2 * 15, "{made:?}");
    for parent in ["task_events", "task_logs"] {
        let reach: f64 = db
            .rows(
                &format!(
                    "select max(extract(epoch from substring(pg_get_expr(c.relpartbound, c.oid)
                                                    from $$TO \\('([^']+)'$$)::timestamptz - now()))::float8
                       from pg_inherits i join pg_class c on c.oid = i.inhrelid
                      where i.inhparent = 'fleet.{parent}'::regclass"
                ),
                &[],
            )
            .await[0]
            .get(0);
        assert!(reach >= later.as_secs_f64(), "{parent} reaches {reach} s");
    }
    let defaults = db
        .count("select count(*) from pg_class where pg_get_expr(relpartbound, oid) = 'DEFAULT'")
        .await;
    assert_eq!(defaults, 0, "no default partition");
    // Analyzed as seldom and as fast as those of the migration.
    let seldom =
        "select count(distinct reloptions) from pg_inherits i join pg_class c on c.oid = i.inhrelid
                   where i.inhparent = 'fleet.task_events'::regclass
                     and 'autovacuum_analyze_scale_factor=1' = any (reloptions)
                     and 'autovacuum_vacuum_cost_limit=2000' = any (reloptions)";
    let all = "select count(*) from pg_inherits where inhparent = 'fleet.task_events'::regclass";
    assert_eq!(db.count(seldom).await, 1);
    assert_eq!(
        db.count(&seldom.replace("distinct reloptions", "reloptions")).await,
        db.count(all).await
    );
    let thorough =
        "select count(*) from pg_attribute a join pg_inherits i on i.inhrelid = a.attrelid
                     where i.inhparent = 'fleet.task_events'::regclass and a.attnum > 0
                       and a.attstattarget is distinct from 20";
    assert_eq!(db.count(thorough).await, 0, "and of as few rows");
    // No partition, no readiness.
    db.execute(
        "do $$ declare t regclass; begin
           for t in select inhrelid from pg_inherits where inhparent = 'fleet.task_logs'::regclass loop
             execute format('drop table %s', t);
           end loop; end $$",
    )
    .await;
    assert!(!store.check_partitions().await.unwrap());
}

/// While somebody writes: attaching needs no lock that stops writers.
#[tokio::test]
async fn partitions_are_made_beside_an_open_transaction_that_writes() {
    let db = Db::new().await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute(
        "insert into fleet.task_events (task_id, type, actor) values (gen_random_uuid(), 'updated', 'test')",
    )
    .await
    .unwrap();
    let later = std::time::Duration::from_secs(120 * 86_400);
    assert!(db.store().make_partitions(later).await.unwrap() > 0);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn undecided_is_the_default_in_rust_in_json_and_in_the_database() {
    assert_eq!(ExecutionMode::default(), ExecutionMode::Undecided);
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    let id = node.create("by json", &[]).await;
    let mut task = node.task(&id).await;
    assert_eq!(task["execution_mode"], "undecided");
    task.as_object_mut().unwrap().remove("execution_mode");
    let task: agent_fleet::model::Task = serde_json::from_value(task).unwrap();
    assert_eq!(task.execution_mode, ExecutionMode::Undecided);
    let defaults = db
        .count(
            "select count(*) from information_schema.columns
              where table_schema = 'fleet' and table_name = 'tasks'
                and column_name in ('execution_mode', 'created_mode') and column_default like '''undecided''%'",
        )
        .await;
    assert_eq!(defaults, 2);
    node.stop().await;
}

/// Its KEY SHARE lock would make a row unclaimable for a moment.
#[tokio::test]
async fn no_foreign_key_refers_to_tasks_or_lanes() {
    let db = Db::new().await;
    let keys = "select count(*) from pg_constraint
                 where contype = 'f' and confrelid in ('fleet.tasks'::regclass, 'fleet.lanes'::regclass)";
    assert_eq!(db.count(keys).await, 0);
}

/// An update of a task is never HOT, so that each index costs each of its steps.
#[tokio::test]
async fn tasks_have_six_indexes() {
    let db = Db::new().await;
    let sql = "select indexname::text from pg_indexes
                where schemaname = 'fleet' and tablename = 'tasks' order by indexname";
    let names: Vec<String> = db.rows(sql, &[]).await.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        names,
        [
            "tasks_due",
            "tasks_held",
            "tasks_key",
            "tasks_pkey",
            "tasks_ready_pull",
            "tasks_ready_push"
        ]
    );
}

#[tokio::test]
async fn the_partitions_of_the_coming_week_are_asked_for_as_well() {
    let db = Db::new().await;
    let store = db.store();
    let next = "select 'fleet.task_logs' || to_char((now() + interval '7 days') at time zone 'UTC', '_IYYY\"w\"IW')";
    let next: String = db.rows(next, &[]).await[0].get(0);
    assert!(store.check_partitions().await.unwrap());
    db.execute(&format!("drop table {next}")).await;
    assert!(!store.check_partitions().await.unwrap(), "without {next}");
}

/// Else vacuum reads nearly all pages each time, since what is new is on all of them.
#[tokio::test]
async fn what_becomes_of_a_task_is_written_on_its_own_page() {
    let db = Db::new().await;
    let store = db.store();
    // Some pages of them, all filled by the creation.
    let tasks = create(&store, task(&[], ExecutionMode::HttpPull), 200).await;
    let session = agent(&store, "a", &[], 1).await;
    let page = async |id: &TaskId| {
        let page = "select (ctid::text::point)[0]::bigint from fleet.tasks where task_id = $1";
        db.rows(page, &[&id.0]).await[0].get::<_, i64>(0)
    };
    for id in &tasks[..5] {
        let created = page(id).await;
        let held = pull(&store, session).await.unwrap();
        assert_eq!((held.task_id, page(id).await), (*id, created), "claimed");
        complete(&store, held).await;
        assert_eq!(page(id).await, created, "completed");
    }
}
