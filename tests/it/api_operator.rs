//! What an operator does to tasks: assign, retry, cancel.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    api::{fingerprint, is_error},
    db::Db,
    node::Node,
};

/// A task in each status, made by the API alone: `(status, task_id)`.
async fn one_of_each(db: &Db, node: &Node) -> Vec<(&'static str, String)> {
    node.register("worker", &[], 100).await;
    let mut all = Vec::new();
    let act = async |task: &Value, act: &str, more: Value| {
        let mut body = json!({"agent_id": "worker", "lease": task["lease"]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        node.must(&format!("/api/v1/tasks/{}/{act}", task["task_id"].as_str().unwrap()), body).await
    };
    for status in
        ["assigned", "running", "review_pending", "completed", "failed", "agent_lost", "cancelled"]
    {
        let made = node
            .must("/api/v1/tasks", json!({"title": status, "key": status, "max_retries": 0}))
            .await;
        let task = node.dequeue("worker", 0).await.unwrap();
        assert_eq!(task["task_id"], made["task_id"]);
        match status {
            "running" => act(&task, "status", json!({"status": "running"})).await,
            "review_pending" => act(
                &task,
                "complete",
                json!({"status": "completed", "artifacts": [{"type": "pr", "url": "https://x/1"}]}),
            )
            .await,
            "completed" | "failed" => act(&task, "complete", json!({"status": status})).await,
            "agent_lost" => {
                // It has been given back as often as it may.
                db.execute("update fleet.tasks set refund_count = 5 where key = 'agent_lost'")
                    .await;
                act(&task, "release", json!({})).await
            }
            "cancelled" => act(&task, "cancel", json!({})).await,
            _ => Value::Null,
        };
        all.push((status, task["task_id"].as_str().unwrap().to_owned()));
    }
    all.push(("created", node.create("created", &["agent:nobody"]).await));
    let body = json!({"title": "scheduled", "run_at": "2999-01-01T00:00:00Z"});
    let task = node.must("/api/v1/tasks", body).await;
    all.push(("scheduled", task["task_id"].as_str().unwrap().to_owned()));
    let pinned = node.create("pinned", &["agent:nobody"]).await;
    node.must(
        &format!("/api/v1/tasks/{pinned}/assign"),
        json!({"agent_id": "worker", "force": true}),
    )
    .await;
    all.push(("pinned", pinned));
    for (status, id) in &all {
        let wanted = if *status == "pinned" { "assigned" } else { status };
        assert_eq!(node.task(id).await["status"], wanted);
    }
    all
}

#[tokio::test]
async fn each_act_is_legal_in_its_statuses_and_in_no_other() {
    for (act, body, legal, to, code) in [
        (
            "cancel",
            json!({"reason": "r"}),
            vec!["created", "scheduled", "pinned", "assigned", "running", "review_pending"],
            "cancelled",
            "illegal_transition",
        ),
        (
            "retry",
            json!({}),
            vec!["failed", "agent_lost", "cancelled"],
            "created",
            "illegal_transition",
        ),
        (
            "assign",
            json!({"agent_id": "worker", "force": true}),
            vec!["created", "scheduled", "pinned"],
            "assigned",
            "task_not_assignable",
        ),
    ] {
        let db = Db::new().await;
        let node = Node::start(&db, "r1", "").await;
        let all = one_of_each(&db, &node).await;
        let before = fingerprint(&db).await;
        for (status, id) in all.iter().filter(|(status, _)| !legal.contains(status)) {
            let (got, reply) = node.post(&format!("/api/v1/tasks/{id}/{act}"), body.clone()).await;
            is_error(&format!("{act} of a {status} one"), got, &reply, 400, code);
        }
        assert_eq!(fingerprint(&db).await, before, "an illegal {act} changed something");
        for (status, id) in all.iter().filter(|(status, _)| legal.contains(status)) {
            let task = node.must(&format!("/api/v1/tasks/{id}/{act}"), body.clone()).await;
            assert_eq!(task["status"], to, "{act} of a {status} one");
        }
        db.check_history().await;
        node.stop().await;
    }
}

#[tokio::test]
async fn a_retried_task_starts_over() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    let body = json!({"title": "t", "max_retries": 1, "execution_mode": "http_pull"});
    let id = node.must("/api/v1/tasks", body).await["task_id"].as_str().unwrap().to_owned();
    let fail = async || {
        let task = node.dequeue("a", 50).await.unwrap();
        let body =
            json!({"agent_id": "a", "lease": task["lease"], "status": "failed", "error": "e"});
        node.must(&format!("/api/v1/tasks/{id}/complete"), body).await
    };
    fail().await;
    assert_eq!(fail().await["status"], "failed");
    let again = node.must(&format!("/api/v1/tasks/{id}/retry"), json!({})).await;
    for (field, value) in [
        ("status", json!("created")),
        ("retry_count", json!(0)),
        ("lease", json!(2)),
        ("execution_mode", json!("http_pull")),
        ("error", Value::Null),
        ("completed_at", Value::Null),
    ] {
        assert_eq!(again[field], value, "{field}");
    }
    assert_eq!(fail().await["status"], "scheduled", "it has its retries again");
    assert_eq!(fail().await["status"], "failed");
    // In another mode from now on; the body may also be left out.
    let again =
        node.must(&format!("/api/v1/tasks/{id}/retry"), json!({"execution_mode": "ssh_cli"})).await;
    assert_eq!(again["execution_mode"], "ssh_cli");
    assert!(node.dequeue("a", 0).await.is_none());
    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({"reason": "enough"})).await;
    let reply = reqwest::Client::new()
        .post(format!("{}/api/v1/tasks/{id}/retry", node.url))
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    let shown = node.task(&id).await;
    assert_eq!(
        (&shown["status"], &shown["execution_mode"]),
        (&json!("created"), &json!("ssh_cli"))
    );
    let cancelled =
        shown["events"].as_array().unwrap().iter().find(|e| e["type"] == "cancelled").unwrap();
    assert_eq!(
        (&cancelled["detail"]["reason"], &cancelled["actor"]),
        (&json!("enough"), &json!("operator:admin"))
    );
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn assigning_checks_target_mode_and_capabilities() {
    let db = Db::new().await;
    // A host that is not there: assigning is allowed all the same, and nothing runs.
    let key = tempfile::NamedTempFile::new().unwrap();
    let hosts = format!(
        "[[hosts]]\nhost_id = \"h1\"\nhostname = \"127.0.0.1\"\nssh_port = 1\nssh_key_path = {key:?}\n\
         known_hosts_path = {key:?}\nwork_dir = \"/nowhere\"\n\
         agents = [{{ agent_type = \"ok\", max_concurrency = 1, capabilities = [\"agent:x\"] }}]\n\
         [cli.ok]\ncommand = [\"true\"]\noutput = \"raw\"\n",
        key = key.path(),
    );
    let node = Node::start(&db, "r1", &hosts).await;
    node.until_host("h1", "offline").await;
    node.register("a", &["agent:y"], 1).await;
    let id = node.create("t", &["agent:x"]).await;
    let assign =
        async |id: &str, body: Value| node.post(&format!("/api/v1/tasks/{id}/assign"), body).await;
    let before = fingerprint(&db).await;
    let nobody = "0192f0c1-2345-7000-8000-000000000000";
    for (what, id, body, status, code) in [
        ("an unknown agent", id.as_str(), json!({"agent_id": "nobody"}), 404, "not_found"),
        ("an unknown CLI", &id, json!({"agent_id": "h1/nothing"}), 404, "not_found"),
        ("an unknown task", nobody, json!({"agent_id": "h1"}), 404, "not_found"),
        ("a lack", &id, json!({"agent_id": "a"}), 400, "capability_mismatch"),
        (
            "a host pulling",
            &id,
            json!({"agent_id": "h1", "execution_mode": "http_pull"}),
            400,
            "bad_request",
        ),
        (
            "an agent pushed to",
            &id,
            json!({"agent_id": "a", "execution_mode": "ssh_cli", "force": true}),
            400,
            "bad_request",
        ),
        (
            "no mode at all",
            &id,
            json!({"agent_id": "h1", "execution_mode": "undecided"}),
            400,
            "bad_request",
        ),
    ] {
        let (got, reply) = assign(id, body).await;
        is_error(what, got, &reply, status, code);
    }
    assert_eq!(fingerprint(&db).await, before);
    // Pinned again and again, by either name of the host, and by force to whom lacks something.
    for (body, mode, host, agent) in [
        (json!({"agent_id": "h1"}), "ssh_cli", json!("h1"), Value::Null),
        (
            json!({"agent_id": "h1/ok", "execution_mode": "ssh_cli"}),
            "ssh_cli",
            json!("h1/ok"),
            Value::Null,
        ),
        (json!({"agent_id": "a", "force": true}), "http_pull", Value::Null, json!("a")),
    ] {
        let (status, task) = assign(&id, body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{body}: {task}");
        assert_eq!((&task["status"], &task["lease"]), (&json!("assigned"), &json!(0)));
        assert_eq!(
            (&task["pinned_to"], &task["execution_mode"]),
            (&body["agent_id"], &json!(mode))
        );
        assert_eq!((&task["assigned_host"], &task["assigned_agent_id"]), (&host, &agent));
        assert_eq!(task["waiting_reason"], "pinned");
    }
    // Given back, it has the mode it was created with and no pin.
    let taken = node.dequeue("a", 0).await.unwrap();
    assert_eq!(taken["task_id"], id);
    let body = json!({"agent_id": "a", "lease": taken["lease"]});
    let back = node.must(&format!("/api/v1/tasks/{id}/release"), body).await;
    assert_eq!((&back["execution_mode"], &back["pinned_to"]), (&json!("undecided"), &Value::Null));
    // A scheduled one loses its time.
    let body = json!({"title": "t", "run_at": "2999-01-01T00:00:00Z"});
    let later = node.must("/api/v1/tasks", body).await["task_id"].as_str().unwrap().to_owned();
    let (_, task) = assign(&later, json!({"agent_id": "a"})).await;
    assert_eq!((&task["status"], &task["run_at"]), (&json!("assigned"), &Value::Null));
    db.check_history().await;
    node.stop().await;
}
