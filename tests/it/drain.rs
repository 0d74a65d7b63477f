//! Agents and hosts that take nothing new, and agents that are deleted.

use agent_fleet::{
    model::{CapabilitySet, ExecutionMode as Mode},
    store::{Credential, Registration},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::{
    dispatch::{dir, local},
    support::{
        api::is_error,
        db::{Db, sql},
        eventually,
        fleet::{HOUR, agent, create, host, pull, push, replica, task},
        node::Node,
    },
};

async fn statement(db: &Db, name: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<i64> {
    let text = sql(name);
    db.rows(text, params).await.iter().map(|row| row.get("held")).collect()
}

#[tokio::test]
async fn a_draining_agent_finishes_what_it_has_and_takes_nothing_new() {
    let db = Db::new().await;
    let (one, two) = (Node::start(&db, "r1", "").await, Node::start(&db, "r2", "").await);
    one.register("a", &[], 5).await;
    one.create("first", &[]).await;
    let first = one.dequeue("a", 0).await.unwrap();
    let drained = one.must("/api/v1/agents/a/drain", json!({})).await;
    assert_eq!((&drained["status"], &drained["leased"]), (&json!("draining"), &json!(1)));
    let again = one.must("/api/v1/agents/a/drain", json!({})).await;
    assert_eq!(again["status"], "draining", "twice is once");

    let waiting = one.create("second", &[]).await;
    for node in [&one, &two] {
        assert!(node.dequeue("a", 0).await.is_none());
    }
    let told = two.must("/api/v1/agents/heartbeat", json!({"agent_id": "a"})).await;
    assert_eq!((&told["status"], &told["drain"]), (&json!("draining"), &json!(true)));
    let (_, page) = one.get("/api/v1/agents?status=draining").await;
    assert_eq!(page["items"][0]["agent_id"], "a");
    assert_eq!(one.complete(&first, "a").await.0, StatusCode::OK);
    // Registering does not undo what an operator wanted.
    one.register("a", &[], 5).await;
    assert!(one.dequeue("a", 0).await.is_none());

    // It waits like any other, and is served as soon as it may be, wherever it waits.
    let resume = async {
        two.until_polled().await;
        one.must("/api/v1/agents/a/resume", json!({})).await
    };
    let (second, resumed) = tokio::join!(two.dequeue("a", 30), resume);
    assert_eq!(second.unwrap()["task_id"], json!(waiting));
    assert_eq!(resumed["status"], "online");
    for act in ["drain", "resume"] {
        for (id, status, code) in [("nobody", 404, "not_found"), ("a%20b", 400, "bad_request")] {
            let path = format!("/api/v1/agents/{id}/{act}");
            let (got, reply) = one.post(&path, json!({})).await;
            is_error(&path, got, &reply, status, code);
        }
    }
    db.check_history().await;
    for node in [one, two] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_claim_checks_under_its_lock_that_the_agent_is_not_draining() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 2).await;
    let session = agent(&store, "a", &[], 2).await;
    // A claim is between its first and its second statement.
    let mut other = db.connect().await;
    let claim = other.transaction().await.unwrap();
    let lock = sql("claim_pull_1_lock");
    assert_eq!(claim.query(lock, &[&vec![session.0]]).await.unwrap().len(), 1);
    let draining = {
        let store = db.store();
        tokio::spawn(async move { store.set_agent_drained("a", true).await.unwrap() })
    };
    eventually("draining waits for the claim", async || {
        let waiting = db
            .count("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
            .await;
        (waiting == 1).then_some(())
    })
    .await;
    assert!(!draining.is_finished());
    claim.commit().await.unwrap();
    assert!(draining.await.unwrap());
    // A claim whose first statement saw the agent as it was before takes nothing for it.
    let take = sql("claim_pull_3_take");
    let task = &db.rows("select task_id, lane_id from fleet.tasks limit 1", &[]).await[0];
    let (task, lane): (uuid::Uuid, i64) = (task.get(0), task.get(1));
    let (tasks, sessions, agents, lanes) = (vec![task], vec![session.0], vec!["a"], vec![lane]);
    let params: [&(dyn ToSql + Sync); 5] = [&tasks, &sessions, &agents, &sessions, &lanes];
    let taken = db.rows(take, &params).await;
    assert!(taken.is_empty(), "{taken:?}");
    assert!(pull(&store, session).await.is_none());
    assert!(store.set_agent_drained("a", false).await.unwrap());
    // Nor for a session that another one has replaced since then.
    let newer = agent(&store, "a", &[], 2).await;
    let taken = db.rows(take, &params).await;
    assert!(taken.is_empty(), "{taken:?}");
    assert!(pull(&store, newer).await.is_some());
}

#[tokio::test]
async fn a_claim_checks_under_its_lock_that_the_host_is_not_draining() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 2).await;
    let (boot, slots) = replica(&store, "r", &[host("h", &[], 2)]).await;
    let mut other = db.connect().await;
    let claim = other.transaction().await.unwrap();
    let lock = sql("claim_push_1_lock");
    assert_eq!(claim.query(lock, &[&vec![slots["h"].0], &boot.0]).await.unwrap().len(), 1);
    let draining = {
        let store = db.store();
        tokio::spawn(async move { store.set_host_drained("h", true).await.unwrap() })
    };
    eventually("draining waits for the claim", async || {
        let waiting = db
            .count("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
            .await;
        (waiting == 1).then_some(())
    })
    .await;
    assert!(!draining.is_finished());
    claim.commit().await.unwrap();
    assert!(draining.await.unwrap());
    let held = statement(&db, "claim_push_2_count", &[&vec![slots["h"].0]]).await;
    assert!(held[0] >= 1_000_000, "{held:?}");
    assert!(push(&store, boot, &[slots["h"]]).await.is_empty());
    assert!(store.set_host_drained("h", false).await.unwrap());
    assert_eq!(push(&store, boot, &[slots["h"]]).await.len(), 2);
}

#[tokio::test]
async fn a_draining_host_finishes_what_it_has_and_is_given_nothing_new() {
    let (db, dir) = (Db::new().await, dir());
    let go = dir.path().join("go");
    let script = format!("cat >/dev/null; while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let node = Node::start(&db, "r", &local(&dir, &script, 2, &[])).await;
    let running = node.create("running", &[]).await;
    node.until(&running, "running").await;
    let drained = node.must("/api/v1/hosts/h/drain", json!({})).await;
    assert_eq!(
        (&drained["status"], &drained["agents"][0]["running"]),
        (&json!("draining"), &json!(1))
    );
    let (_, page) = node.get("/api/v1/hosts?status=draining").await;
    assert_eq!(page["items"][0]["host_id"], "h");
    let (_, page) = node.get("/api/v1/hosts?status=online").await;
    assert_eq!(page["items"], json!([]));
    let waiting = node.create("waiting", &[]).await;
    std::fs::write(&go, "").unwrap();
    node.until(&running, "completed").await;
    assert_eq!(node.task(&waiting).await["status"], "created");
    let (status, reply) = node.post("/api/v1/hosts/other/drain", json!({})).await;
    is_error("an unknown host", status, &reply, 404, "not_found");
    node.must("/api/v1/hosts/h/resume", json!({})).await;
    node.until(&waiting, "completed").await;
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_check_probes_the_host_from_every_replica_now() {
    let (db, dir) = (Db::new().await, dir());
    let toml =
        local(&dir, "true", 1, &[]).replace("[cli.ok]", "[dispatch]\ninterval = \"1h\"\n[cli.ok]");
    let (one, two) = (Node::start(&db, "r1", &toml).await, Node::start(&db, "r2", &toml).await);
    one.until_host("h", "online").await;
    let at = |host: &Value| -> Vec<(String, jiff::Timestamp)> {
        let replicas = host["replicas"].as_array().unwrap().iter();
        replicas
            .map(|r| {
                let checked = r["checked_at"].as_str().unwrap().parse().unwrap();
                (r["replica_id"].as_str().unwrap().to_owned(), checked)
            })
            .collect()
    };
    let before = eventually("both have probed", async || {
        let (_, host) = one.get("/api/v1/hosts/h").await;
        let all = host["replicas"].as_array()?;
        (all.len() == 2 && all.iter().all(|r| r["checked_at"].is_string())).then(|| at(&host))
    })
    .await;
    // The next probe by itself would come in an hour.
    let host = one.must("/api/v1/hosts/h/check", json!({})).await;
    let after = at(&host);
    assert_eq!((&after[0].0[..], &after[1].0[..]), ("r1", "r2"));
    assert!(after.iter().zip(&before).all(|(a, b)| a.1 > b.1), "{before:?} {after:?}");
    assert_eq!(host["status"], "online");
    let (status, reply) = one.post("/api/v1/hosts/nowhere/check", json!({})).await;
    is_error("an unknown host", status, &reply, 404, "not_found");
    for node in [one, two] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_deleted_agents_token_is_worth_nothing_and_its_id_is_free() {
    let db = Db::new().await;
    let toml = "[auth]\nadmin_token = \"admin\"\noperator_token = \"operator\"\nenrollment_token = \"enroll\"\n";
    let (one, two) = (Node::start(&db, "r1", toml).await, Node::start(&db, "r2", toml).await);
    let send = async |node: &Node, method, path: &str, token, body: Value| {
        node.send(method, path, Some(token), Some(&body)).await
    };
    let registration =
        json!({"agent_id": "a", "agent_type": "t", "hostname": "h", "max_concurrency": 2});
    let register = async || {
        send(&one, Method::POST, "/api/v1/agents/register", "enroll", registration.clone()).await
    };
    let token = register().await.1["registry_token"].as_str().unwrap().to_owned();
    let (_, task) =
        send(&one, Method::POST, "/api/v1/tasks", "operator", json!({"title": "t"})).await;
    let dequeue = json!({"agent_id": "a"});
    assert_eq!(
        send(&one, Method::POST, "/api/v1/tasks/dequeue", &token, dequeue.clone()).await.0,
        StatusCode::OK
    );
    assert_eq!(register().await.0, StatusCode::FORBIDDEN, "it is taken");
    // It waits for more at the other replica.
    let poll = json!({"agent_id": "a", "wait_secs": 50});
    let polling = send(&two, Method::POST, "/api/v1/tasks/dequeue", &token, poll);
    let deleting = async {
        two.until_polled().await;
        send(&one, Method::DELETE, "/api/v1/agents/a", "admin", Value::Null).await
    };
    let (polled, deleted) = tokio::join!(polling, deleting);
    assert_eq!(deleted.0, StatusCode::OK, "{deleted:?}");
    is_error("its poll", polled.0, &polled.1, 409, "session_ended");
    let (_, task) = one
        .send(
            Method::GET,
            &format!("/api/v1/tasks/{}", task["task_id"].as_str().unwrap()),
            Some("admin"),
            None,
        )
        .await;
    assert_eq!(
        (&task["status"], &task["attempt"], &task["retry_count"]),
        (&json!("created"), &json!(0), &json!(0))
    );
    for node in [&one, &two] {
        for path in
            ["/api/v1/agents/heartbeat", "/api/v1/tasks/dequeue", "/api/v1/agents/deregister"]
        {
            eventually("its token is unknown", async || {
                let (status, _) = send(node, Method::POST, path, &token, dequeue.clone()).await;
                (status == StatusCode::UNAUTHORIZED).then_some(())
            })
            .await;
        }
    }
    let (status, reply) =
        send(&one, Method::POST, "/api/v1/agents/register", &token, registration.clone()).await;
    is_error("registering with it", status, &reply, 401, "unauthorized");
    let (status, reply) =
        send(&one, Method::DELETE, "/api/v1/agents/a", "admin", Value::Null).await;
    is_error("twice", status, &reply, 404, "not_found");
    assert_eq!(register().await.0, StatusCode::OK, "its id is free");
    db.check_history().await;
    for node in [one, two] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_and_registering_at_one_moment_leave_no_session_without_its_agent() {
    let db = Db::new().await;
    let store = db.store();
    for _ in 0..30 {
        agent(&store, "a", &[], 1).await;
        let (one, two) = (db.store(), db.store());
        let deleting = tokio::spawn(async move { one.delete_agent("a").await.unwrap() });
        let registering = tokio::spawn(async move {
            let registration = Registration {
                agent_id: agent_fleet::model::AgentId::parse("a").unwrap(),
                agent_type: "t".into(),
                hostname: "h".into(),
                capabilities: CapabilitySet::default(),
                max_concurrency: 1,
                metadata: json!({}),
            };
            let mut token = [0; 32];
            token[..16].copy_from_slice(Uuid::now_v7().as_bytes());
            two.register_agent(&registration, Credential::Admin, &token, HOUR, &[]).await.unwrap()
        });
        assert!(deleting.await.unwrap().is_some());
        assert!(registering.await.unwrap().is_ok());
        let astray = db
            .count(
                "select count(*) from fleet.sessions s
                  where s.ended_at is null and not exists (select 1 from fleet.agents a where a.session_id = s.session_id)",
            )
            .await;
        assert_eq!(astray, 0);
    }
}
