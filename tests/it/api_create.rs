//! `POST /api/v1/tasks`: what a task is at first, and that the same request makes it once.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    api::{fingerprint, is_error, request},
    db::Db,
    node::Node,
};

/// What a creation answers is what is read afterwards.
async fn is_as_shown(node: &Node, task: &Value) {
    let mut shown = node.task(task["task_id"].as_str().unwrap()).await;
    for more in ["events", "receipts"] {
        shown.as_object_mut().unwrap().remove(more).unwrap();
    }
    assert_eq!(*task, shown);
}

#[tokio::test]
async fn a_task_of_a_title_alone_has_the_defaults() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let (status, task) = node.post("/api/v1/tasks", json!({"title": "Do it"})).await;
    assert_eq!(status, StatusCode::CREATED, "{task}");
    let id = task["task_id"].as_str().unwrap();
    let prompt = task["prompt"].as_str().unwrap();
    assert!(prompt.contains("Do it"), "{prompt}");
    let wanted = json!({
        "task_id": id, "key": id, "source": "api", "title": "Do it", "body": "", "labels": [], "capabilities": [],
        "task_type": null, "priority": "normal", "status": "created", "execution_mode": "undecided", "repo": null,
        "issue_url": null, "prompt": prompt, "pinned_to": null, "assigned_agent_id": null, "assigned_host": null,
        "lease": 0, "lease_expires_at": null, "deadline_at": null, "attempt": 0, "max_retries": 2, "retry_count": 0,
        "review_count": 0, "timeout_secs": 3600, "run_at": null, "branch_name": format!("task/{id}"), "pr_url": null,
        "pr_title": null, "waiting_reason": "no_capable_agent", "error": null, "summary": null, "usage": null,
        "notes": [], "created_at": task["created_at"], "assigned_at": null, "started_at": null,
        "completed_at": null, "last_activity_at": null,
    });
    assert_eq!(task, wanted);
    is_as_shown(&node, &task).await;
    assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 7);
    // Undecided also where it counts.
    let row =
        &db.rows("select execution_mode, created_mode, status from fleet.tasks", &[]).await[0];
    for column in ["execution_mode", "created_mode"] {
        assert_eq!(row.get::<_, &str>(column), "undecided");
    }
    let shown = node.task(id).await;
    assert_eq!(shown["receipts"], json!([]));
    let event = &shown["events"][0];
    assert_eq!((&event["type"], &event["actor"]), (&json!("created"), &json!("operator:admin")));
    assert_eq!(
        (&event["task_id"], &event["lease"], &event["attempt"]),
        (&json!(id), &json!(0), &json!(0))
    );
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn everything_that_can_be_said_is_kept() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let repo = json!({"full_name": "org/repo", "clone_url": "https://x/org/repo.git", "ssh_url": "git@x:org/repo.git",
                      "default_branch": "trunk"});
    let task = node
        .must(
            "/api/v1/tasks",
            json!({"title": "T", "body": "B\n\n```é```", "labels": ["agent:rust", "bug", "agent/code", "agent:rust"],
                   "priority": "urgent", "execution_mode": "http_pull", "key": "org/repo#42", "timeout_secs": 60,
                   "max_retries": 0, "repo": repo, "issue_url": "https://x/org/repo/issues/42"}),
        )
        .await;
    for (field, value) in [
        ("body", json!("B\n\n```é```")),
        ("labels", json!(["agent:rust", "bug", "agent/code", "agent:rust"])),
        ("capabilities", json!(["agent:code", "agent:rust"])),
        ("task_type", json!("code")),
        ("priority", json!("urgent")),
        ("execution_mode", json!("http_pull")),
        ("key", json!("org/repo#42")),
        ("timeout_secs", json!(60)),
        ("max_retries", json!(0)),
        ("repo", repo),
        ("issue_url", json!("https://x/org/repo/issues/42")),
        ("branch_name", json!("task/org%2Frepo%2342")),
    ] {
        assert_eq!(task[field], value, "{field}");
    }
    is_as_shown(&node, &task).await;
    let prompt = task["prompt"].as_str().unwrap();
    for part in ["```é```", "trunk", "task/org%2Frepo%2342"] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
    // By a label unless it is said.
    for (body, priority) in [
        (json!({"title": "t", "labels": ["priority/high"]}), "high"),
        (json!({"title": "t", "labels": ["priority:low", "priority:urgent"]}), "urgent"),
        (json!({"title": "t", "labels": ["priority/high"], "priority": "low"}), "low"),
    ] {
        assert_eq!(node.must("/api/v1/tasks", body).await["priority"], priority);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_task_with_a_future_time_waits_for_it() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    let body = json!({"title": "t", "run_at": "2999-01-01T05:00:00.000001+05:00"});
    let task = node.must("/api/v1/tasks", body).await;
    assert_eq!(
        (&task["status"], &task["waiting_reason"]),
        (&json!("scheduled"), &json!("scheduled"))
    );
    assert_eq!(task["run_at"], "2999-01-01T00:00:00.000001Z");
    is_as_shown(&node, &task).await;
    assert!(node.dequeue("a", 0).await.is_none());
    // Its time comes.
    db.execute("update fleet.tasks set run_at = now()").await;
    let id = task["task_id"].as_str().unwrap();
    let taken = node.dequeue("a", 50).await.unwrap();
    assert_eq!(taken["task_id"], id);
    let types: Vec<Value> = node.task(id).await["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["type"].clone())
        .collect();
    assert_eq!(types, ["created", "due", "claimed"]);
    // A time that has passed is no reason to wait.
    for past in ["2001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"] {
        let task = node.must("/api/v1/tasks", json!({"title": "t", "run_at": past})).await;
        assert_eq!((&task["status"], &task["run_at"]), (&json!("created"), &Value::Null));
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn the_same_key_is_the_same_task() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let body = json!({"title": "t", "key": "k 1", "labels": ["agent:x"]});
    let (status, first) = node.post("/api/v1/tasks", body.clone()).await;
    assert_eq!(status, StatusCode::CREATED);
    let before = fingerprint(&db).await;
    let (status, again) = node.post("/api/v1/tasks", body.clone()).await;
    assert_eq!((status, &again["task_id"]), (StatusCode::OK, &first["task_id"]));
    let mut other = body.clone();
    other["title"] = json!("another");
    let (status, reply) = node.post("/api/v1/tasks", other).await;
    is_error("another body", status, &reply, 409, "conflict");
    assert_eq!(fingerprint(&db).await, before);
    // At once, on two replicas: one makes it.
    let second = Node::start(&db, "r2", "").await;
    let body = json!({"title": "t", "key": "race"});
    let replies = futures_util::future::join_all(
        (0..10)
            .map(|n| if n % 2 == 0 { &node } else { &second })
            .map(|n| n.post("/api/v1/tasks", body.clone())),
    )
    .await;
    let made = replies.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    assert_eq!(made, 1);
    for (status, task) in &replies {
        assert!(status.is_success(), "{status} {task}");
        assert_eq!(task["task_id"], replies[0].1["task_id"]);
    }
    db.check_history().await;
    second.stop().await;
    node.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_makes_a_request_repeatable() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let post = async |key: &str, body: &Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let body = Some(body.to_string().into_bytes());
        request(&node, &Method::POST, "/api/v1/tasks", &headers, body).await
    };
    let one = json!({"title": "t"});
    let first = post("i-1", &one).await;
    assert_eq!(first.status, StatusCode::CREATED);
    let before = fingerprint(&db).await;
    let again = post("i-1", &one).await;
    assert_eq!((again.status, &again.body["task_id"]), (StatusCode::OK, &first.body["task_id"]));
    post("i-1", &json!({"title": "another"})).await.is_error("another body", 409, "conflict");
    let long = "k".repeat(201);
    post(&long, &one).await.is_error("a long key", 400, "bad_request");
    assert_eq!(fingerprint(&db).await, before);
    assert_eq!(post("i-2", &one).await.status, StatusCode::CREATED);
    // At once, on two replicas.
    let second = Node::start(&db, "r2", "").await;
    let replies = futures_util::future::join_all((0..10).map(|n| {
        let headers = [("content-type", "application/json"), ("idempotency-key", "i-race")];
        let node = if n % 2 == 0 { &node } else { &second };
        let body = Some(one.to_string().into_bytes());
        async move { request(node, &Method::POST, "/api/v1/tasks", &headers, body).await }
    }))
    .await;
    assert_eq!(replies.iter().filter(|r| r.status == StatusCode::CREATED).count(), 1);
    for reply in &replies {
        assert!(reply.status.is_success(), "{}", reply.body);
        assert_eq!(reply.body["task_id"], replies[0].body["task_id"]);
    }
    second.stop().await;
    let many = json!([{"title": "a"}, {"title": "b", "key": "kb"}]);
    let first = post("i-3", &many).await;
    assert_eq!(first.status, StatusCode::CREATED);
    let again = post("i-3", &many).await;
    assert_eq!((again.status, ids(&again.body)), (StatusCode::OK, ids(&first.body)));
    node.stop().await;
}

fn ids(tasks: &Value) -> Vec<String> {
    tasks.as_array().unwrap().iter().map(|t| t["task_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_array_is_created_whole_and_in_order_or_not_at_all() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    // Keys against the order, so that neither is the other.
    let many: Vec<Value> = (0..1_000)
        .map(|n| match n % 3 {
            0 => json!({"title": format!("t{n}")}),
            _ => json!({"title": format!("t{n}"), "key": format!("k{:04}", 1_000 - n)}),
        })
        .collect();
    let (status, made) = node.post("/api/v1/tasks", json!(many)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let made = made.as_array().unwrap();
    assert_eq!(made.len(), 1_000);
    for (n, task) in made.iter().enumerate() {
        assert_eq!(task["title"], format!("t{n}"));
    }
    let before = fingerprint(&db).await;
    let refused = async |what: &str, body: Value, status: u16, code: &str| {
        let (got, reply) = node.post("/api/v1/tasks", body).await;
        is_error(what, got, &reply, status, code)
    };
    let mut too_many = many.clone();
    too_many.push(json!({"title": "one more"}));
    refused("1,001", json!(too_many), 400, "bad_request").await;
    refused("none", json!([]), 400, "bad_request").await;
    let sentence =
        refused("a bad one", json!([{"title": "x"}, {"title": ""}]), 400, "bad_request").await;
    assert!(sentence.contains("item 1") && sentence.contains("title"), "{sentence}");
    refused(
        "a key twice",
        json!([{"title": "x", "key": "d"}, {"title": "x", "key": "d"}]),
        400,
        "bad_request",
    )
    .await;
    // Some exist: all or none, also when what exists is the same.
    let existing = &many[1];
    let sentence =
        refused("a mixed one", json!([{"title": "x", "key": "new"}, existing]), 409, "conflict")
            .await;
    assert!(sentence.contains("k0999"), "{sentence}");
    refused("a mixed one without keys", json!([{"title": "x"}, existing]), 409, "conflict").await;
    refused("another body", json!([{"title": "other", "key": "k0999"}]), 409, "conflict").await;
    assert_eq!(fingerprint(&db).await, before, "something of it was created");
    // All of them again.
    let (status, again) = node.post("/api/v1/tasks", json!([many[2], existing])).await;
    assert_eq!(status, StatusCode::OK);
    let wanted: Vec<&Value> = [2, 1].iter().map(|n| &made[*n]["task_id"]).collect();
    assert_eq!(json!(ids(&again)), json!(wanted));
    // An array of one is answered by one.
    let (status, one) = node.post("/api/v1/tasks", json!([{"title": "x"}])).await;
    assert_eq!((status, one.as_array().map(Vec::len)), (StatusCode::CREATED, Some(1)));
    db.check_history().await;
    node.stop().await;
}
