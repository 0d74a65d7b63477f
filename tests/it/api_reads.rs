//! What can be read: lists and their pages, one task, the event log, health, why a task waits.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually,
    fleet::{host, replica},
    node::Node,
};

fn titles(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|t| t["title"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn tasks_are_listed_by_filter_and_page() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.must("/api/v1/tasks", json!({"title": "Held Thing", "key": "org/repo#1"})).await;
    node.dequeue("a", 0).await.unwrap();
    for body in [
        json!({"title": "pull", "execution_mode": "http_pull", "labels": ["agent:x"]}),
        json!({"title": "push", "execution_mode": "ssh_cli", "labels": ["agent:x", "agent:y"]}),
        json!({"title": "cli", "source": "cli", "labels": ["x"]}),
        json!({"title": "later", "run_at": "2999-01-01T00:00:00Z"}),
    ] {
        node.must("/api/v1/tasks", body).await;
    }
    for (query, wanted) in [
        ("", vec!["later", "cli", "push", "pull", "Held Thing"]),
        ("?status=created", vec!["cli", "push", "pull"]),
        ("?status=assigned", vec!["Held Thing"]),
        ("?status=scheduled", vec!["later"]),
        ("?agent_id=a", vec!["Held Thing"]),
        ("?agent_id=b", vec![]),
        ("?execution_mode=ssh_cli", vec!["push"]),
        ("?execution_mode=undecided", vec!["later", "cli"]),
        ("?capability=agent%3Ax", vec!["push", "pull"]),
        ("?capability=agent:y", vec!["push"]),
        ("?source=cli", vec!["cli"]),
        ("?source=api&status=created", vec!["push", "pull"]),
        ("?q=THING", vec!["Held Thing"]),
        ("?q=held+th", vec!["Held Thing"]),
        ("?q=repo%231", vec!["Held Thing"]),
        ("?q=%25", vec![]),
    ] {
        let (status, page) = node.get(&format!("/api/v1/tasks{query}")).await;
        assert_eq!((status, titles(&page)), (StatusCode::OK, wanted), "{query}");
        for task in page["items"].as_array().unwrap() {
            assert!(task.get("body").is_none_or(Value::is_null), "{task}");
            assert!(task.get("prompt").is_none_or(Value::is_null), "{task}");
        }
    }
    // Page by page, while new ones arrive: each of the first five once.
    let mut seen = Vec::new();
    let mut path = "/api/v1/tasks?limit=2".to_owned();
    for _ in 0..4 {
        let (_, page) = node.get(&path).await;
        seen.extend(titles(&page).into_iter().map(str::to_owned));
        node.create("new", &[]).await;
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/tasks?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, ["later", "cli", "push", "pull", "Held Thing"]);
    node.stop().await;
}

#[tokio::test]
async fn a_list_has_fifty_unless_more_are_asked_for() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let many: Vec<Value> = (0..501).map(|n| json!({"title": format!("t{n}")})).collect();
    node.must("/api/v1/tasks", json!(many)).await;
    for list in ["tasks", "events"] {
        let (_, page) = node.get(&format!("/api/v1/{list}")).await;
        assert_eq!(page["items"].as_array().unwrap().len(), 50, "{list}");
        assert!(page["next_cursor"].is_string(), "{list}");
        let (_, page) = node.get(&format!("/api/v1/{list}?limit=500")).await;
        assert_eq!(page["items"].as_array().unwrap().len(), 500, "{list}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_task_is_shown_by_id_and_by_key_with_its_life() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    for key in ["org/repo#42", "a b%c?d&e", "ключ/é", "dequeue"] {
        let made = node.must("/api/v1/tasks", json!({"title": "t", "key": key})).await;
        let id = made["task_id"].as_str().unwrap();
        let task = node.dequeue("a", 0).await.unwrap();
        let (status, reply) = node.complete(&task, "a").await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        let by_id = node.task(id).await;
        assert_eq!(by_id, node.task(key).await, "{key}");
        assert_eq!(by_id["key"], key);
        let types: Vec<&str> = by_id["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["created", "claimed", "completed"]);
        let receipt = &by_id["receipts"][0];
        assert_eq!(
            (&receipt["lease"], &receipt["agent_id"], &receipt["status"], &receipt["summary"]),
            (&json!(1), &json!("a"), &json!("completed"), &json!("done"))
        );
        assert!(receipt["received_at"].is_string());
        assert_eq!(by_id["summary"], "done");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn events_come_in_order_and_none_that_commits_late_is_skipped() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let early = node.create("early", &[]).await;
    let events = async |after: i64, limit: usize| -> Vec<Value> {
        let (status, page) = node.get(&format!("/api/v1/events?after={after}&limit={limit}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().clone()
    };
    let first = events(0, 500).await;
    assert_eq!(first.len(), 1);
    for field in ["event_id", "task_id", "at", "type", "actor", "lease", "attempt", "detail"] {
        assert!(first[0].get(field).is_some(), "{field} in {}", first[0]);
    }
    assert_eq!(first[0]["task_id"], early);
    let mut after = first[0]["event_id"].as_i64().unwrap();

    // Another session writes an event, and does not commit yet; then a later one commits.
    let slow = db.connect().await;
    slow.batch_execute("begin").await.unwrap();
    let row = slow
        .query_one(
            "insert into fleet.task_events (task_id, type, actor) values ($1::text::uuid, 'progress', 'agent:slow')
             returning event_id",
            &[&early],
        )
        .await
        .unwrap();
    let held: i64 = row.get(0);
    let late = node.create("late", &[]).await;
    assert_eq!(
        events(after, 500).await,
        Vec::<Value>::new(),
        "what may still be preceded is not told"
    );
    slow.batch_execute("commit").await.unwrap();
    let next = eventually("the horizon moves on", async || {
        let next = events(after, 500).await;
        (next.len() == 2).then_some(next)
    })
    .await;
    assert_eq!((&next[0]["event_id"], &next[0]["task_id"]), (&json!(held), &json!(early)));
    assert_eq!((&next[1]["type"], &next[1]["task_id"]), (&json!("created"), &json!(late)));
    after = next[1]["event_id"].as_i64().unwrap();

    // A transaction that has written elsewhere before its event: its place is below that of those that end before it.
    slow.batch_execute("create table public.mine (n int)").await.unwrap();
    slow.batch_execute("begin; insert into public.mine values (1)").await.unwrap();
    let late = node.create("late again", &[]).await;
    assert_eq!(events(after, 500).await, Vec::<Value>::new(), "it may write an event yet");
    let row = slow.query_one("select fleet.enqueue('by sql')::text", &[]).await.unwrap();
    let by_sql: String = row.get(0);
    slow.batch_execute("commit").await.unwrap();
    let next = eventually("the horizon moves on again", async || {
        let next = events(after, 500).await;
        (next.len() == 2).then_some(next)
    })
    .await;
    assert_eq!((&next[0]["task_id"], &next[1]["task_id"]), (&json!(by_sql), &json!(late)));
    after = next[1]["event_id"].as_i64().unwrap();

    // One at a time, each once.
    for n in 0..7 {
        node.create(&format!("t{n}"), &[]).await;
    }
    let mut seen = Vec::new();
    for _ in 0..8 {
        let page = events(after, 1).await;
        let Some(event) = page.first() else { break };
        after = event["event_id"].as_i64().unwrap();
        seen.push(after);
    }
    assert_eq!(seen.len(), 7);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 7);
    node.stop().await;
}

/// A transaction that began first may write last: its events have lower xids and higher ids than others'.
#[tokio::test]
async fn events_are_told_by_the_order_of_their_transactions() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let task = node.create("t", &[]).await;
    let next = async |after: &Value| -> Option<Value> {
        let (_, page) = node.get(&format!("/api/v1/events?after={after}&limit=1")).await;
        Some(page["items"].as_array()?.first()?["event_id"].clone())
    };
    let mut after = next(&json!(0)).await.unwrap();
    let slow = db.connect().await;
    let write = async || -> i64 {
        let sql = "insert into fleet.task_events (task_id, type, actor)
                   values ($1::text::uuid, 'progress', 'agent:slow') returning event_id";
        slow.query_one(sql, &[&task]).await.unwrap().get(0)
    };
    slow.batch_execute("begin").await.unwrap();
    let first = write().await;
    node.create("quick", &[]).await;
    let quick = db.count("select max(event_id) from fleet.task_events").await;
    let last = write().await;
    slow.batch_execute("commit").await.unwrap();
    assert!(first < quick && quick < last);
    for wanted in [first, last, quick] {
        after = eventually("the next one is told", async || next(&after).await).await;
        assert_eq!(after, wanted);
    }
    assert_eq!(next(&after).await, None);
    node.stop().await;
}

#[tokio::test]
async fn transactions_of_other_databases_hold_no_event_back_and_a_stall_is_told() {
    let (db, other) = (Db::new().await, Db::new().await);
    let node = Node::start(&db, "r1", "").await;
    let elsewhere = other.connect().await;
    elsewhere.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    node.create("t", &[]).await;
    let told = async || node.get("/api/v1/events").await.1["items"].as_array().unwrap().len();
    eventually("the event is told", async || (told().await == 1).then_some(())).await;
    let here = db.connect().await;
    here.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    node.create("held back", &[]).await;
    eventually("the stall is told, and does not make the replica unready", async || {
        let (status, ready) = node.get("/readyz").await;
        assert_eq!(status, StatusCode::OK, "{ready}");
        ready["events"].as_str()?.contains("held back for").then_some(())
    })
    .await;
    assert_eq!(told().await, 1);
    here.batch_execute("rollback").await.unwrap();
    eventually("it is over", async || {
        (told().await == 2 && node.get("/readyz").await.1["events"] == "ok").then_some(())
    })
    .await;
    elsewhere.batch_execute("rollback").await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn health_readiness_and_version_need_no_credential() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "[auth]\nmode = \"token\"\nadmin_token = \"s\"\n").await;
    let reply = reqwest::get(format!("{}/healthz", node.url)).await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.text().await.unwrap(), "ok");
    let ok = json!({"database": "ok", "schema": "ok", "listener": "ok", "notifications": "ok", "partitions": "ok", "events": "ok", "draining": "ok"});
    eventually("the replica is ready and listens", async || {
        let (status, ready) = node.get("/readyz").await;
        (status == StatusCode::OK && ready == ok).then_some(())
    })
    .await;
    let (status, version) = node.get("/api/v1/version").await;
    assert_eq!((status, &version["version"]), (StatusCode::OK, &json!(env!("CARGO_PKG_VERSION"))));
    // The week after next has no partition: told, and not ready.
    db.execute(
        "do $$ declare p text; begin
           for p in select c.oid::regclass::text from pg_class c join pg_inherits i on i.inhrelid = c.oid
                     where i.inhparent in ('fleet.task_events'::regclass, 'fleet.task_logs'::regclass) loop
             execute 'drop table ' || p;
           end loop; end $$",
    )
    .await;
    let (status, ready) = node.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{ready}");
    assert_ne!(ready["partitions"], "ok");
    assert_eq!(ready["database"], "ok");
    node.stop().await;
}

#[tokio::test]
async fn a_task_says_why_it_waits() {
    let db = Db::new().await;
    let work = tempfile::tempdir().unwrap();
    let hosts = format!(
        "[[hosts]]\nhost_id = \"here\"\nhostname = \"localhost\"\nwork_dir = {work:?}\n\
         agents = [{{ agent_type = \"ok\", max_concurrency = 1, capabilities = [\"agent:here\"] }}]\n\
         [[hosts]]\nhost_id = \"gone\"\nhostname = \"127.0.0.1\"\nssh_port = 1\nssh_key_path = {key:?}\n\
         known_hosts_path = {key:?}\nwork_dir = \"/nowhere\"\n\
         agents = [{{ agent_type = \"ok\", max_concurrency = 1, capabilities = [\"agent:gone\"] }}]\n\
         [cli.ok]\ncommand = [\"true\"]\noutput = \"raw\"\n",
        work = work.path(),
        key = work.path().join("key"),
    );
    std::fs::write(work.path().join("key"), "").unwrap();
    let node = Node::start(&db, "r1", &hosts).await;
    node.until_host("here", "online").await;
    node.until_host("gone", "offline").await;
    node.register("a", &["agent:pull"], 1).await;
    db.execute("update fleet.host_agents set parked_until = now() + interval '1 hour' where host_id = 'here'").await;
    let reason = async |body: Value| {
        let task = node.must("/api/v1/tasks", body).await;
        let id = task["task_id"].as_str().unwrap().to_owned();
        let shown = node.task(&id).await;
        let (_, list) = node.get("/api/v1/tasks?limit=1").await;
        assert_eq!(list["items"][0]["waiting_reason"], shown["waiting_reason"]);
        (shown["waiting_reason"].clone(), id)
    };
    for (labels, mode, wanted) in [
        (json!(["agent:nobody"]), "undecided", "no_capable_agent"),
        (json!(["agent:pull"]), "ssh_cli", "no_capable_agent"),
        (json!(["agent:gone"]), "http_pull", "no_capable_agent"),
        (json!(["agent:pull"]), "undecided", "no_idle_agent"),
        (json!(["agent:pull"]), "http_pull", "no_idle_agent"),
        (json!(["agent:gone"]), "undecided", "host_offline"),
        (json!(["agent:gone"]), "ssh_cli", "host_offline"),
        (json!(["agent:here"]), "undecided", "quota"),
    ] {
        let body = json!({"title": "t", "labels": labels, "execution_mode": mode});
        assert_eq!(reason(body.clone()).await.0, wanted, "{body}");
    }
    let body = json!({"title": "t", "run_at": "2999-01-01T00:00:00Z"});
    assert_eq!(reason(body).await.0, "scheduled");
    db.execute("update fleet.lanes set paused_at = now() where capabilities = array['agent:pull']")
        .await;
    let body = json!({"title": "t", "labels": ["agent:pull"]});
    let (paused, id) = reason(body).await;
    assert_eq!(paused, "paused");
    node.must(&format!("/api/v1/tasks/{id}/assign"), json!({"agent_id": "a"})).await;
    assert_eq!(node.task(&id).await["waiting_reason"], "pinned");
    // Taken, it no longer waits; a pin is exempt from the pause.
    assert_eq!(node.dequeue("a", 0).await.unwrap()["waiting_reason"], Value::Null);
    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    assert_eq!(node.task(&id).await["waiting_reason"], Value::Null);
    db.check_history().await;
    node.stop().await;
}

/// PostgreSQL keeps moments that JSON and this program have no word for; they come by hand.
#[tokio::test]
async fn moments_out_of_this_world_break_no_list() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &["agent:none"], 1).await;
    let (first, last) = ("-009999-01-02T01:59:59Z", "9999-12-30T22:00:00.999999999Z");
    for (moment, shown) in [
        ("infinity", last),
        ("9999-12-31 12:00:00Z", last),
        ("294276-12-31 00:00:00Z", last),
        ("-infinity", first),
        ("4713-01-01 00:00:00Z BC", "-004712-01-01T00:00:00Z"),
    ] {
        let id = node.create("t", &[]).await;
        db.execute(&format!(
            "update fleet.tasks set run_at = '{moment}', last_activity_at = '{moment}', created_at = '{moment}'
              where task_id = '{id}'"
        ))
        .await;
        let task = node.task(&id).await;
        for field in ["run_at", "last_activity_at", "created_at"] {
            assert_eq!(task[field], shown, "{field} = {moment}");
        }
    }
    let (status, page) = node.get("/api/v1/tasks").await;
    assert_eq!((status.as_u16(), page["items"].as_array().unwrap().len()), (200, 5));
    db.execute("update fleet.agents set registered_at = 'infinity'").await;
    let (status, page) = node.get("/api/v1/agents").await;
    assert_eq!((status.as_u16(), &page["items"][0]["registered_at"]), (200, &json!(last)));
    // Parked for good.
    replica(&db.store(), "other", &[host("h", &[], 1)]).await;
    db.execute("update fleet.host_agents set parked_until = 'infinity'").await;
    let (status, page) = node.get("/api/v1/hosts").await;
    let until = &page["items"][0]["agents"][0]["parked_until"];
    assert_eq!((status.as_u16(), until), (200, &json!("9999-12-30T00:00:00Z")));
    node.stop().await;
}
