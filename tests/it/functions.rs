//! The DBA's functions: as safe as the API, in the caller's own transaction.

use std::collections::BTreeSet;

use agent_fleet::{
    model::{CapabilitySet, ExecutionMode, TaskId, priority_from_labels},
    store::function_names,
};

use crate::support::{
    api::fingerprint,
    db::Db,
    eventually,
    fleet::{agent, create, pull, task},
    node::Node,
};

/// A statement that must be refused with this SQLSTATE, a hint, and nothing changed.
async fn refused(db: &Db, sql: &str, code: &str) -> String {
    let before = fingerprint(db).await;
    let error = db.client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
    assert_eq!(error.code().code(), code, "{sql}: {}", error.message());
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{sql} has no hint");
    assert_eq!(fingerprint(db).await, before, "{sql} changed something");
    error.message().to_owned()
}

async fn status(db: &Db, key: &str) -> String {
    db.rows("select status from fleet.tasks where coalesce(key, task_id::text) = $1", &[&key]).await
        [0]
    .get(0)
}

#[tokio::test]
async fn every_file_is_a_function_that_says_what_it_is() {
    let db = Db::new().await;
    let listed: BTreeSet<String> = function_names().map(str::to_owned).collect();
    let files: BTreeSet<String> =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/functions"))
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap().replace(".sql", ""))
            .collect();
    assert_eq!(listed, files);
    let rows = db
        .rows(
            "select proname::text, obj_description(oid, 'pg_proc') is not null,
                    coalesce(array_to_string(proconfig, ' ') = 'search_path=pg_catalog, pg_temp', false)
               from pg_proc where pronamespace = 'fleet'::regnamespace",
            &[],
        )
        .await;
    for row in rows.iter().filter(|row| files.contains(row.get::<_, &str>(0))) {
        let name: &str = row.get(0);
        assert!(row.get::<_, bool>(1), "fleet.{name} has no comment");
        assert!(row.get::<_, bool>(2), "fleet.{name} has no fixed search_path");
    }
    assert!(files.iter().all(|file| rows.iter().any(|row| row.get::<_, &str>(0) == file)));
}

#[tokio::test]
async fn requirements_and_priorities_are_read_as_the_coordinator_reads_them() {
    let db = Db::new().await;
    for labels in [
        vec!["bug", "agent/code", "agent:rust", "agent:code", "agent:"],
        vec!["  agent:a ", "agent:\tb", "Agent:c", "agent:Z", "agent:é", "agent:a:b/c"],
        vec![],
        vec!["priority:high", "agent/", "agent"],
    ] {
        let sql = db.rows("select fleet.required_capabilities($1)", &[&labels]).await[0]
            .get::<_, Vec<String>>(0);
        assert_eq!(sql, CapabilitySet::required(&labels).unwrap().as_slice(), "{labels:?}");
    }
    for labels in
        [vec!["priority/high", "x"], vec!["priority:low", "priority:Urgent"], vec!["priority:none"]]
    {
        db.rows("select fleet.enqueue('t', labels => $1)", &[&labels]).await;
        let rank: i16 =
            db.rows("select priority from fleet.tasks order by seq desc limit 1", &[]).await[0]
                .get(0);
        let wanted = priority_from_labels(labels.iter().copied()).unwrap_or_default();
        assert_eq!(rank, wanted.rank(), "{labels:?}");
    }
}

#[tokio::test]
async fn enqueue_makes_what_the_api_would_have_made() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    let body = serde_json::json!({
        "title": "T", "body": "B", "labels": ["agent:x", "bug"], "key": "by-api", "timeout_secs": 60, "max_retries": 1,
        "priority": "high", "repo": "o/r", "issue_url": "https://x/1", "execution_mode": "http_pull"});
    node.must("/api/v1/tasks", body).await;
    db.execute(
        "select fleet.enqueue('T', 'B', array['agent:x', 'bug'], key => 'by-sql', timeout_secs => 60, max_retries => 1,
                              priority => 'high', repo => '\"o/r\"', issue_url => 'https://x/1', execution_mode => 'http_pull')",
    )
    .await;
    let (mut api, mut sql) = (node.task("by-api").await, node.task("by-sql").await);
    assert_eq!(sql["source"], "sql");
    assert!(sql["events"][0]["actor"].as_str().unwrap().starts_with("sql:"));
    for task in [&mut api, &mut sql] {
        for field in ["task_id", "key", "source", "branch_name", "created_at", "prompt", "events"] {
            task.as_object_mut().unwrap().remove(field);
        }
    }
    assert_eq!(api, sql);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn enqueue_is_part_of_the_callers_transaction_and_wakes_at_its_commit() {
    let db = Db::new().await;
    let node = std::sync::Arc::new(Node::start(&db, "r", "").await);
    eventually("it listens", async || node.replica.listening().ok()).await;
    node.register("a", &["agent:x"], 3).await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute("select fleet.enqueue('never')").await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 0);
    // The lane is known, so nothing but the wake-up stands between commit and claim: the poll alone would take seconds.
    db.execute("insert into fleet.lanes (capabilities) values ('{agent:x}')").await;
    let mut total = std::time::Duration::ZERO;
    for _ in 0..5 {
        let waits = std::sync::Arc::clone(&node);
        let poll = tokio::spawn(async move { waits.dequeue("a", 20).await });
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        let tx = other.transaction().await.unwrap();
        tx.batch_execute("select fleet.enqueue('now', labels => '{agent:x}')").await.unwrap();
        assert!(!poll.is_finished(), "not before the commit");
        tx.commit().await.unwrap();
        let since = std::time::Instant::now();
        let task = poll.await.unwrap().unwrap();
        total += since.elapsed();
        node.complete(&task, "a").await;
    }
    assert!(total / 5 < std::time::Duration::from_millis(900), "{total:?}: not woken, polled");
    // A set without a lane gets one after the commit.
    db.execute("select fleet.enqueue('new set', labels => '{agent:x,agent:y}')").await;
    node.register("b", &["agent:x", "agent:y"], 1).await;
    eventually("it is claimed", async || node.dequeue("b", 1).await).await;
    db.check_history().await;
    std::sync::Arc::into_inner(node).unwrap().stop().await;
}

/// It makes no lane in its caller's transaction, or whoever needs the same lane would wait for that to end.
#[tokio::test]
async fn enqueue_of_a_new_set_is_in_nobodys_way() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &["agent:new"], 2).await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute("select fleet.enqueue('by sql', labels => '{agent:new}')").await.unwrap();
    let laneless = "select count(*) from fleet.tasks where lane_id is null";
    assert_eq!(tx.query_one(laneless, &[]).await.unwrap().get::<_, i64>(0), 1);
    node.create("by api", &["agent:new"]).await;
    tx.commit().await.unwrap();
    for _ in 0..2 {
        eventually("it is claimed", async || node.dequeue("a", 1).await).await;
    }
    db.check_history().await;
    node.stop().await;
}

/// The least that an INSERT must name, for those who do not call the function.
#[tokio::test]
async fn a_plain_insert_works_and_wakes() {
    let db = Db::new().await;
    let node = std::sync::Arc::new(Node::start(&db, "r", "").await);
    eventually("it listens", async || node.replica.listening().ok()).await;
    node.register("a", &[], 1).await;
    db.execute("insert into fleet.lanes (capabilities) values ('{}')").await;
    let waits = std::sync::Arc::clone(&node);
    let poll = tokio::spawn(async move { waits.dequeue("a", 20).await });
    db.execute(
        "with t as (insert into fleet.tasks (key) values ('plain') returning task_id, status)
         , s as (insert into fleet.task_specs (task_id, title) select task_id, 'plain' from t)
         insert into fleet.task_events (task_id, type, to_status, actor) select task_id, 'created', status, 'sql:me' from t",
    )
    .await;
    let task = poll.await.unwrap().unwrap();
    assert_eq!((&task["key"], &task["source"]), (&"plain".into(), &"sql".into()));
    node.complete(&task, "a").await;
    db.check_history().await;
    std::sync::Arc::into_inner(node).unwrap().stop().await;
}

#[tokio::test]
async fn a_key_names_one_task() {
    let db = Db::new().await;
    let enqueue = "select fleet.enqueue('t', 'b', key => 'k')::text";
    let id = |rows: Vec<tokio_postgres::Row>| rows[0].get::<_, String>(0);
    let first = id(db.rows(enqueue, &[]).await);
    assert_eq!(id(db.rows(enqueue, &[]).await), first);
    refused(&db, "select fleet.enqueue('t', 'other', key => 'k')", "ZF409").await;
    // Two at once: the second waits for the first, and finds it.
    let mut one = db.connect().await;
    let tx = one.transaction().await.unwrap();
    tx.batch_execute("select fleet.enqueue('race', key => 'race')").await.unwrap();
    let two = db.connect().await;
    let racing = tokio::spawn(async move {
        two.batch_execute("select fleet.enqueue('race', key => 'race')").await
    });
    eventually("it waits", async || {
        let waits = "select count(*) from pg_locks where not granted";
        (db.count(waits).await > 0).then_some(())
    })
    .await;
    tx.commit().await.unwrap();
    racing.await.unwrap().unwrap();
    assert_eq!(db.count("select count(*) from fleet.tasks where key = 'race'").await, 1);
    db.check_history().await;
}

/// What is an id and what a key is told in the same way by SQL and by the API.
#[tokio::test]
async fn a_checksum_is_a_key_wherever_a_task_is_named() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    let key = "900150983cd24fb0d6963f7d28e17f72";
    let row = db.client.query_one("select fleet.enqueue('t', key => $1)::text", &[&key]).await;
    let id: String = row.unwrap().get(0);
    assert_eq!(node.task(key).await["task_id"], id.as_str());
    assert_eq!(node.task(&id.to_uppercase()).await["key"], key);
    let other = "0cc175b9c0f1b6a831c399e269772661";
    let made = node.must("/api/v1/tasks", serde_json::json!({"title": "t", "key": other})).await;
    let found = db.client.query_one("select fleet.task_id_of($1)::text", &[&other]).await.unwrap();
    assert_eq!(made["task_id"], found.get::<_, String>(0).as_str());
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn nonsense_is_refused_and_changes_nothing() {
    let db = Db::new().await;
    let store = db.store();
    agent(&store, "a", &["agent:x"], 1).await;
    create(&store, task(&["agent:y"], ExecutionMode::Undecided), 1).await;
    db.execute("select fleet.enqueue('t', key => 'there')").await;
    let long = "repeat('x', 6000000)";
    for (sql, code) in [
        ("select fleet.enqueue(null)".to_owned(), "ZF400"),
        ("select fleet.enqueue(' ')".to_owned(), "ZF400"),
        (format!("select fleet.enqueue({long})"), "ZF400"),
        (format!("select fleet.enqueue('t', {long})"), "ZF400"),
        ("select fleet.enqueue('t', labels => array['a', null])".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', labels => array[['a'], ['b']])".to_owned(), "ZF400"),
        (format!("select fleet.enqueue('t', labels => array[left({long}, 300)])"), "ZF400"),
        (format!("select fleet.enqueue('t', labels => array['agent:' || left({long}, 200)])"), "ZF400"),
        (
            "select fleet.enqueue('t', labels => (select array_agg('agent:' || n) from generate_series(1, 17) n))"
                .to_owned(),
            "ZF400",
        ),
        (
            "select fleet.enqueue('t', labels => (select array_agg('l' || n) from generate_series(1, 101) n))".to_owned(),
            "ZF400",
        ),
        ("select fleet.enqueue('t', priority => 'huge')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', execution_mode => 'push')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', key => '')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', key => E'a\\nb')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', key => gen_random_uuid()::text)".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', timeout_secs => 0)".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', max_retries => 101)".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', max_retries => null)".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', run_at => 'infinity')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', run_at => '9999-12-30')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', repo => '[1]')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', repo => '{\"full_name\": \"o/r\", \"ssh_url\": 1}')".to_owned(), "ZF400"),
        ("select fleet.enqueue('t', issue_url => E'a\\tb')".to_owned(), "ZF400"),
        ("select fleet.cancel(null)".to_owned(), "ZF400"),
        ("select fleet.cancel('nothing')".to_owned(), "ZF404"),
        ("select fleet.cancel(gen_random_uuid()::text)".to_owned(), "ZF404"),
        (format!("select fleet.cancel('there', {long})"), "ZF400"),
        ("select fleet.retry('there')".to_owned(), "ZF409"),
        ("select fleet.retry('there', 'push')".to_owned(), "ZF400"),
        ("select fleet.assign('there', 'nobody')".to_owned(), "ZF404"),
        ("select fleet.assign('there', null)".to_owned(), "ZF404"),
        ("select fleet.assign('there', 'a', reservation => '-1 s')".to_owned(), "ZF400"),
        ("select fleet.assign((select key from fleet.tasks order by seq limit 1), 'a')".to_owned(), "ZF400"),
        ("select fleet.pause_lane(null)".to_owned(), "ZF400"),
        ("select fleet.pause_lane('{x}')".to_owned(), "ZF400"),
        ("select fleet.pause_lane('{agent:nobody}')".to_owned(), "ZF404"),
        ("select fleet.resume_lane('{agent:nobody}')".to_owned(), "ZF404"),
        ("select fleet.drain_agent('nobody')".to_owned(), "ZF404"),
        ("select fleet.resume_agent(null)".to_owned(), "ZF404"),
        ("select fleet.purge(null)".to_owned(), "ZF400"),
        ("select fleet.purge(now() + interval '1 second')".to_owned(), "ZF400"),
        ("select fleet.purge('-infinity')".to_owned(), "ZF400"),
    ] {
        refused(&db, &sql, code).await;
    }
    db.check_history().await;
}

#[tokio::test]
async fn operators_acts_by_sql() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &["agent:x"], 5).await;
    node.register("b", &[], 5).await;
    let id = node.create("t", &["agent:x"]).await;
    let act = async |sql: &str| db.rows(sql, &[&id]).await;
    // Assigned: by id or key, to whom lacks something only by force.
    act("select fleet.assign($1, 'b', force => true)").await;
    let task = node.dequeue("b", 5).await.unwrap();
    assert_eq!(task["task_id"], id.as_str());
    // Cancelled: the holder learns it.
    act("select fleet.cancel($1, 'enough')").await;
    let (status, _) = node.complete(&task, "b").await;
    assert_eq!(status.as_u16(), 409);
    let heard = node.must("/api/v1/agents/heartbeat", serde_json::json!({"agent_id": "b"})).await;
    assert_eq!(heard["cancel"], serde_json::json!([id]));
    // Retried, in another mode.
    act("select fleet.retry($1, 'http_pull')").await;
    assert_eq!(node.task(&id).await["execution_mode"], "http_pull");
    // Paused, resumed.
    db.execute("select fleet.pause_lane('{agent:x}')").await;
    assert_eq!(node.task(&id).await["waiting_reason"], "paused");
    assert!(node.dequeue("a", 0).await.is_none());
    db.execute("select fleet.resume_lane('{agent/x}')").await;
    // Drained, resumed.
    db.execute("select fleet.drain_agent('a')").await;
    assert!(node.dequeue("a", 0).await.is_none());
    db.execute("select fleet.resume_agent('a')").await;
    let task = node.dequeue("a", 5).await.unwrap();
    node.complete(&task, "a").await;
    let events = node.task(&id).await["events"].clone();
    let acts: Vec<_> = events
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["actor"].as_str().unwrap().starts_with("sql:"))
        .map(|e| e["type"].as_str().unwrap())
        .collect();
    assert_eq!(acts, ["pinned", "cancelled", "retried"]);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn purge_forgets_what_has_ended_and_nothing_else() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &[], 9).await;
    create(&store, task(&[], ExecutionMode::Undecided), 3).await;
    let done = pull(&store, session).await.unwrap();
    crate::support::fleet::complete(&store, done).await;
    let held = pull(&store, session).await.unwrap();
    db.execute("select fleet.enqueue('t', key => 'off'); select fleet.cancel('off')").await;
    assert_eq!(db.count("select fleet.purge(now() - interval '1 day')").await, 0);
    assert_eq!(db.count("select fleet.purge(now())").await, 2);
    let left: Vec<TaskId> = db
        .rows("select task_id from fleet.tasks", &[])
        .await
        .iter()
        .map(|r| TaskId(r.get(0)))
        .collect();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&held.task_id) && !left.contains(&done.task_id));
    assert_eq!(db.count("select count(*) from fleet.task_specs").await, 2);
    assert_eq!(db.count("select count(*) from fleet.receipts").await, 0);
    assert_eq!(status(&db, &held.task_id.to_string()).await, "assigned");
}
