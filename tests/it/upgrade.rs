//! A replica of the release before on the schema of this one: its statements, kept in tests/fixtures/released, are prepared
//! and used beside those of today. `migrations/README.md` has the rule.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use crate::support::{db::Db, node::Node};

const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/released/V0002");

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
    assert_eq!(count, 89, "all that was released");
}

/// Runs a statement of the release before.
async fn old(db: &Db, name: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
    let path = Path::new(RELEASED).join(format!("{name}.sql"));
    let text = fs::read_to_string(path).unwrap();
    db.client.query(&text, params).await.unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

/// A task, as a replica of the release before creates it.
async fn old_create(db: &Db, title: &str) -> Uuid {
    old(db, "intern_lanes", &[&json!([[]])]).await;
    let id: Uuid = old(db, "make_task_ids", &[&1_i32]).await[0].get(0);
    let task = json!([{"task_id": id, "key": id, "source": "api", "priority": 1, "execution_mode": "undecided",
                       "max_retries": 2, "timeout_secs": 60, "title": title, "body": "", "labels": [],
                       "capabilities": []}]);
    assert_eq!(old(db, "insert_tasks", &[&task, &"operator:admin"]).await.len(), 1);
    id
}

/// A claim for this session, as a replica of the release before makes it: the task and its lease.
async fn old_claim(db: &Db, session: Uuid) -> (Uuid, i64) {
    let sessions = vec![session];
    let locked = old(db, "claim_pull_1_lock", &[&sessions]).await;
    let agent: String = locked[0].get("agent_id");
    assert!(old(db, "claim_pull_2_count", &[&sessions]).await.is_empty());
    let ready = old(db, "claim_pull_2_ready", &[&json!([[]]), &10_i64]).await;
    let task: Uuid = ready[0].get("task_id");
    let taken = old(db, "claim_pull_3_take", &[&vec![task], &sessions, &vec![agent]]).await;
    (task, taken[0].get("lease"))
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
    let (task, lease) = old_claim(&db, session).await;
    assert_eq!((task, lease), (id, 1));
    let started: &[&(dyn ToSql + Sync)] =
        &[&task, &lease, &session, &"agent:of-old", &json!({}), &None::<i32>];
    assert!(old(&db, "start_task", started).await[0].get::<_, bool>("applied"));
    old_complete(&db, task, lease, session, "of-old").await;
    assert_eq!(node.task(&id.to_string()).await["status"], "completed");

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
