//! A replica of the release before on the schema of this one: its statements, kept in tests/fixtures/released, are prepared
//! and used beside those of today. `migrations/README.md` has the rule.

use std::{fs, path::Path};

use agent_fleet::store::migration_names;
use serde_json::{Value, json};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use crate::support::{db::Db, node::Node};

const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/released/V0010");

#[tokio::test]
async fn every_statement_of_the_release_before_is_prepared() {
    let db = Db::new().await;
    let mut count = 0;
    for file in fs::read_dir(RELEASED).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        if let Err(error) = db.client.prepare(&text).await {
            panic!("{}: {error:?}", path.display());
        }
        count += 1;
    }
    assert_eq!(count, 132, "all that was released");
}

/// Runs a statement of the release before.
async fn old(db: &Db, name: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
    let path = Path::new(RELEASED).join(format!("{name}.sql"));
    let text = fs::read_to_string(path).unwrap();
    db.client.query(&text, params).await.unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

/// A task, as a replica of the release before creates it: with its id for a key.
async fn old_create(db: &Db, title: &str) -> Uuid {
    old(db, "intern_lanes", &[&json!([[]])]).await;
    let id: Uuid = old(db, "make_task_ids", &[&1_i32]).await[0].get(0);
    let none = || vec![None::<&str>];
    let params: &[&(dyn ToSql + Sync)] = &[
        &vec![id],
        &vec![id.to_string()],
        &vec!["api"],
        &vec![1_i16],
        &vec!["undecided"],
        &vec![2_i32],
        &vec![60_i32],
        &vec![None::<jiff::Timestamp>],
        &vec![title],
        &vec![""],
        &vec!["{}"],
        &vec!["{}"],
        &vec![None::<Value>],
        &none(),
        &vec![None::<&[u8]>],
        &vec![None::<i64>],
        &vec![None::<bool>],
        &vec!["operator:admin"],
        &none(),
        &true,
    ];
    assert_eq!(old(db, "insert_tasks", params).await.len(), 1);
    id
}

/// A claim for this session, as a replica of the release before makes it: the task, its key and its lease.
async fn old_claim(db: &Db, session: Uuid, agent: &str) -> (Uuid, String, i64) {
    let sessions = vec![session];
    assert_eq!(old(db, "claim_pull_1_lock", &[&sessions]).await.len(), 1);
    assert!(old(db, "claim_pull_2_held", &[&sessions]).await.is_empty());
    let lane = db.rows("select lane_id from fleet.lanes", &[]).await[0].get::<_, i64>(0);
    let place: &[&(dyn ToSql + Sync)] =
        &[&vec![0_i32], &vec![lane], &vec![1_i16], &vec![0_i64], &10_i64];
    let ready = old(db, "claim_pull_2_ready", place).await;
    let task: Uuid = ready[0].get("task_id");
    let pair: &[&(dyn ToSql + Sync)] = &[
        &vec![task],
        &sessions,
        &vec![agent],
        &vec![None::<Uuid>],
        &Vec::<Uuid>::new(),
        &Vec::<f64>::new(),
    ];
    let taken = old(db, "claim_pull_3_take", pair).await;
    (task, taken[0].get("key"), taken[0].get("lease"))
}

/// A receipt, as a replica of the release before stores it.
async fn old_complete(db: &Db, task: Uuid, lease: i64, session: Uuid, agent: &str) {
    let receipt = json!({"status": "completed", "summary": "s", "artifacts": []});
    let params: &[&(dyn ToSql + Sync)] = &[
        &vec![task],
        &vec![lease],
        &vec![session],
        &vec!["completed"],
        &vec![None::<String>],
        &vec![None::<i32>],
        &vec![Some(receipt)],
        &vec![Some(vec![0_u8; 32])],
        &vec![format!("agent:{agent}")],
        &vec![None::<&str>],
        &10.0_f64,
    ];
    let ended = old(db, "end_leases", params).await;
    assert!(ended[0].get::<_, bool>("applied"));
}

async fn session_of(db: &Db, agent: &str) -> Uuid {
    old(db, "find_agent_session", &[&agent]).await[0].get("session_id")
}

#[tokio::test]
async fn replicas_of_both_releases_work_side_by_side() {
    let db = Db::new().await;
    let node = Node::start(&db, "new", "").await;
    // An agent that came to the old replica, one that came to the new.
    let session: Uuid =
        old(&db, "begin_session", &[&"agent", &"of-old", &180.0_f64]).await[0].get(0);
    let none: Vec<String> = Vec::new();
    let params: &[&(dyn ToSql + Sync)] =
        &[&"of-old", &"t", &"h", &none, &1_i32, &json!({}), &session, &vec![1_u8; 32]];
    old(&db, "upsert_agent", params).await;
    node.register("of-new", &[], 1).await;
    assert_eq!(old(&db, "touch_sessions", &[&vec![session]]).await.len(), 1);

    // Created, claimed, started and completed by the old one.
    let id = old_create(&db, "old").await;
    let (task, key, lease) = old_claim(&db, session, "of-old").await;
    assert_eq!((task, key, lease), (id, id.to_string(), 1));
    let started: &[&(dyn ToSql + Sync)] = &[
        &vec![task],
        &vec![lease],
        &vec![session],
        &vec!["agent:of-old"],
        &vec![json!({})],
        &vec![None::<i32>],
    ];
    assert!(old(&db, "start_task", started).await[0].get::<_, bool>("applied"));
    old_complete(&db, task, lease, session, "of-old").await;
    assert_eq!(node.task(&id.to_string()).await["status"], "completed");

    // Created by the new one, which gives it no key, claimed and completed by the old.
    let id = node.create("new, then old", &[]).await;
    let (task, key, lease) = old_claim(&db, session, "of-old").await;
    assert_eq!((task.to_string(), key), (id.clone(), id));
    old_complete(&db, task, lease, session, "of-old").await;

    // Created by the old one, claimed and completed by the new.
    let id = old_create(&db, "old, then new").await;
    let task = node.dequeue("of-new", 10).await.unwrap();
    assert_eq!(task["task_id"], id.to_string());
    assert_eq!(node.complete(&task, "of-new").await.0.as_u16(), 200);

    // Created and claimed by the new one, completed by the old.
    let id = node.create("new, then old", &[]).await;
    let task = node.dequeue("of-new", 10).await.unwrap();
    assert_eq!(task["task_id"], id.as_str());
    let session = session_of(&db, "of-new").await;
    let lease = task["lease"].as_i64().unwrap();
    old_complete(&db, Uuid::parse_str(&id).unwrap(), lease, session, "of-new").await;
    assert_eq!(node.task(&id).await["status"], "completed");

    // Its slot is free for the new one, and what the old one reads is whole.
    let id = node.create("again", &[]).await;
    let task: Value = node.dequeue("of-new", 10).await.unwrap();
    assert_eq!(task["task_id"], id.as_str());
    assert_eq!(node.complete(&task, "of-new").await.0.as_u16(), 200);
    let rows = old(&db, "get_tasks", &[&vec![Uuid::parse_str(&id).unwrap()]]).await;
    assert_eq!(rows.len(), 1);
    db.check_history().await;
    node.stop().await;
}

/// V0011 takes away what 0.1 inserts by. It needs nothing of the program, so it is run as it stands.
#[tokio::test]
async fn keys_are_not_made_optional_beside_a_replica_that_cannot_do_without() {
    let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let contraction = fs::read_to_string(format!("{migrations}/V0011__keys.sql")).unwrap();
    let db = Db::empty().await;
    db.execute("create schema fleet").await;
    for name in migration_names().iter().take_while(|name| !name.starts_with("V11")) {
        let (version, name) = name.trim_start_matches('V').split_once("__").unwrap();
        let version: u32 = version.parse().unwrap();
        let file = format!("{migrations}/V{version:04}__{name}.sql");
        db.execute(&fs::read_to_string(file).unwrap()).await;
    }
    db.execute(
        "with s as (insert into fleet.sessions (kind, subject, ttl) values ('replica', 'r-1', '15 s') returning session_id)
         insert into fleet.replicas (replica_id, session_id, hostname, version, machine)
         select 'r-1', session_id, 'h', '0.1.0', 'm' from s;
         insert into fleet.tasks (task_id, key) select id, id::text from (select fleet.uuid_v7() as id) i",
    )
    .await;
    let tx = format!("begin; {contraction}; commit");
    let refused = db.client.batch_execute(&tx).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("r-1"), "{refused:?}");
    db.execute("rollback").await;
    // One that was killed is not waited for longer than its ttl.
    db.execute("update fleet.sessions set last_heartbeat_at = now() - interval '16 s'").await;
    db.execute(&tx).await;
    // A key is still given once.
    db.execute("insert into fleet.tasks (key) values (null), (null), ('k')").await;
    let twice = db.client.execute("insert into fleet.tasks (key) values ('k')", &[]).await;
    assert_eq!(twice.unwrap_err().code().unwrap().code(), "23505");
}
