//! Each field of each body: missing, mistyped, too long, with NUL, negative, huge. A 400 that names the field.

use serde_json::{Value, json};

use crate::support::{
    api::{endpoints, fingerprint, is_error},
    db::Db,
    node::Node,
};

/// What is wrong with a field in any endpoint: values of another type.
fn mistyped(kind: &str) -> Vec<Value> {
    let any = [
        json!("x"),
        json!(7),
        json!(1.5),
        json!(true),
        json!([1]),
        json!({"x": 1}),
        json!(-7),
        json!(1e30),
        json!(u64::MAX),
    ];
    any.into_iter()
        .filter(|value| match kind {
            "text" => !value.is_string(),
            "texts" => true,
            "whole" => !value.is_i64(),
            "number" => !value.is_number(),
            "flag" => !value.is_boolean(),
            "object" => !value.is_object(),
            "time" => true,
            "objects" => true,
            other => panic!("{other}"),
        })
        .collect()
}

/// A text of so many bytes.
fn long(bytes: usize) -> Value {
    json!("x".repeat(bytes))
}

/// (endpoint, field, its kind, whether it is required, values of the right type that it cannot have)
fn fields() -> Vec<(&'static str, &'static str, &'static str, bool, Vec<Value>)> {
    let nul = || json!("a\0b");
    let many = |n: usize| json!((0..n).map(|i| format!("agent:{i}")).collect::<Vec<_>>());
    let names = || vec![json!(""), nul(), json!("a b"), json!("é"), json!("a/b"), long(129)];
    let sets = || vec![json!([nul()]), json!([long(300)]), json!([""]), many(257)];
    let texts = |max: usize| vec![nul(), long(max + 1)];
    let register = "/api/v1/agents/register";
    let create = "/api/v1/tasks";
    let complete = "/api/v1/tasks/{id}/complete";
    let secs = || vec![json!(-1), json!(0), json!(2_592_001), json!(i64::MAX), json!(i64::MIN)];
    let mut all = vec![
        (register, "agent_id", "text", true, names()),
        (register, "agent_type", "text", true, texts(255)),
        (register, "hostname", "text", true, texts(255)),
        (register, "capabilities", "texts", false, sets()),
        (
            register,
            "max_concurrency",
            "whole",
            false,
            vec![json!(0), json!(-1), json!(10_001), json!(i64::MAX), json!(i64::MIN)],
        ),
        (
            register,
            "metadata",
            "object",
            false,
            vec![json!({"k": nul()}), json!({"a\0": 1}), json!({"k": long(20_000)})],
        ),
        (
            register,
            "resume",
            "texts",
            false,
            vec![json!([nul()]), json!([long(501)]), json!(vec!["k"; 10_001])],
        ),
        (
            "/api/v1/agents/heartbeat",
            "running",
            "texts",
            false,
            vec![json!([nul()]), json!([long(501)]), json!(vec!["k"; 10_001])],
        ),
        (create, "title", "text", true, vec![json!(""), json!(" \n"), nul(), long(1_001)]),
        (create, "body", "text", false, vec![nul()]),
        (
            create,
            "labels",
            "texts",
            false,
            vec![
                json!([nul()]),
                json!([long(256)]),
                many(17),
                json!(vec!["l"; 101]),
                json!([format!("agent:{}", "x".repeat(200))]),
            ],
        ),
        (create, "priority", "text", false, vec![json!("HIGH"), json!(""), json!("highest")]),
        (create, "execution_mode", "text", false, vec![json!("ssh"), json!("UNDECIDED"), nul()]),
        (
            create,
            "key",
            "text",
            false,
            vec![
                json!(""),
                json!(" "),
                nul(),
                long(201),
                json!("a\nb"),
                json!("0192f0c1-2345-7000-8000-000000000000"),
            ],
        ),
        (
            create,
            "run_at",
            "time",
            false,
            vec![
                json!(""),
                json!("tomorrow"),
                json!("2026-13-01T00:00:00Z"),
                json!("2026-01-01"),
                json!("-009999-01-02T00:00:00Z"),
                json!("0000-01-01T00:00:00Z"),
                json!("99999-01-01T00:00:00Z"),
            ],
        ),
        (create, "timeout_secs", "whole", false, secs()),
        (create, "max_retries", "whole", false, vec![json!(-1), json!(101), json!(i64::MAX)]),
        (
            create,
            "repo",
            "object",
            false,
            vec![
                json!({}),
                json!(["name", "clone", "ssh", "main"]),
                json!({"full_name": 1}),
                json!({"full_name": "a\0"}),
                json!({"full_name": "r", "clone_url": "a\nb"}),
                json!({"full_name": long(2_001)}),
            ],
        ),
        (create, "issue_url", "text", false, vec![nul(), json!("a\nb"), long(2_001)]),
        ("/api/v1/agents/heartbeat", "agent_id", "text", true, names()),
        ("/api/v1/agents/deregister", "agent_id", "text", true, names()),
        ("/api/v1/tasks/dequeue", "agent_id", "text", true, names()),
        ("/api/v1/tasks/dequeue", "capabilities", "texts", false, sets()),
        ("/api/v1/tasks/dequeue", "wait_secs", "whole", false, vec![json!(-1), json!(i64::MIN)]),
        ("/api/v1/tasks/{id}/status", "agent_id", "text", true, names()),
        ("/api/v1/tasks/{id}/status", "lease", "whole", true, vec![]),
        (
            "/api/v1/tasks/{id}/status",
            "status",
            "text",
            true,
            vec![json!(""), json!("RUNNING"), nul()],
        ),
        ("/api/v1/tasks/{id}/status", "progress", "text", false, texts(1_000)),
        ("/api/v1/tasks/{id}/logs", "agent_id", "text", true, names()),
        ("/api/v1/tasks/{id}/logs", "lease", "whole", true, vec![]),
        ("/api/v1/tasks/{id}/logs", "offset", "whole", true, vec![json!(-1), json!(i64::MIN)]),
        ("/api/v1/tasks/{id}/logs", "data", "text", true, vec![]),
        ("/api/v1/tasks/{id}/release", "agent_id", "text", true, names()),
        ("/api/v1/tasks/{id}/release", "lease", "whole", true, vec![]),
        ("/api/v1/tasks/{id}/release", "reason", "text", false, texts(2_000)),
        (
            "/api/v1/tasks/{id}/release",
            "retry_after_secs",
            "whole",
            false,
            vec![json!(-1), json!(2_592_001), json!(i64::MAX)],
        ),
        ("/api/v1/tasks/{id}/assign", "agent_id", "text", true, texts(300)),
        (
            "/api/v1/tasks/{id}/assign",
            "execution_mode",
            "text",
            false,
            vec![json!("ssh"), json!("ssh_cli")],
        ),
        ("/api/v1/tasks/{id}/assign", "force", "flag", false, vec![]),
        ("/api/v1/tasks/{id}/retry", "execution_mode", "text", false, vec![json!("ssh")]),
        ("/api/v1/tasks/{id}/cancel", "reason", "text", false, texts(2_000)),
    ];
    for path in [complete, "/api/v1/receipts"] {
        let artifact =
            |kind: &str, field: &str, value: Value| json!([{"type": kind, field: value}]);
        all.extend([
            (path, "agent_id", "text", true, names()),
            (path, "lease", "whole", false, vec![]),
            (path, "status", "text", true, vec![json!("done"), json!(""), nul()]),
            (path, "duration_seconds", "number", false, vec![json!(-1), json!(1e30)]),
            (path, "summary", "text", false, texts(64 << 10)),
            (path, "error", "text", false, texts(64 << 10)),
            (
                path,
                "artifacts",
                "objects",
                false,
                vec![
                    json!([{}]),
                    json!([["pr", "https://x/1"]]),
                    json!([{"type": "picture", "url": "u"}]),
                    json!([{"type": "pr"}]),
                    artifact("pr", "url", nul()),
                    artifact("url", "url", long(4_001)),
                    artifact("file", "path", nul()),
                    artifact("commit", "sha", json!(7)),
                    json!(vec![json!({"type": "url", "url": "u"}); 101]),
                ],
            ),
            (
                path,
                "usage",
                "object",
                false,
                vec![
                    json!({"input_tokens": -1}),
                    json!({"output_tokens": 1.5}),
                    json!({"input_tokens": 1e30}),
                    json!({"cost_usd": -0.01}),
                    json!({"cost_usd": 1e300}),
                ],
            ),
        ]);
    }
    all.push(("/api/v1/receipts", "task_id", "text", true, vec![json!("a\0"), long(501)]));
    all.push((complete, "task_id", "text", false, vec![json!("another"), json!("a\0")]));
    all
}

#[tokio::test]
async fn each_bad_field_is_a_400_that_names_it_and_changes_nothing() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.must("/api/v1/tasks", json!({"title": "held"})).await;
    let task = node.dequeue("a", 0).await.unwrap();
    let all = endpoints(task["task_id"].as_str().unwrap(), "a", task["lease"].as_i64().unwrap());
    let before = fingerprint(&db).await;
    let mut wrong = Vec::new();
    for (name, field, kind, required, values) in fields() {
        let endpoint = all.iter().find(|e| e.name == name && !e.body.is_null()).unwrap();
        let mut bodies: Vec<Value> = Vec::new();
        for value in mistyped(kind).into_iter().chain(values) {
            // A repository may also be given by its name alone.
            if field == "repo" && value.is_string() {
                continue;
            }
            let mut body = endpoint.body.clone();
            body[field] = value;
            bodies.push(body);
        }
        if required {
            let mut body = endpoint.body.clone();
            body[field] = Value::Null;
            bodies.push(body.clone());
            body.as_object_mut().unwrap().remove(field);
            bodies.push(body);
        }
        for body in bodies {
            let mut given = body[field].to_string();
            given.truncate(40);
            let (status, reply) = node.post(&endpoint.path, body).await;
            let named = reply["error"].as_str().is_some_and(|error| error.contains(field));
            if status.as_u16() != 400 || reply["code"] != "bad_request" || !named {
                wrong.push(format!("{name} {field}={given}: {status} {reply}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(fingerprint(&db).await, before);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_lease_that_cannot_be_is_no_lease_and_unknown_agents_are_not_found() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.must("/api/v1/tasks", json!({"title": "held"})).await;
    let task = node.dequeue("a", 0).await.unwrap();
    let all = endpoints(task["task_id"].as_str().unwrap(), "a", task["lease"].as_i64().unwrap());
    let before = fingerprint(&db).await;
    for endpoint in all.iter().filter(|e| !e.body["lease"].is_null()) {
        for lease in [0, -1, 2, i64::MAX, i64::MIN] {
            let mut body = endpoint.body.clone();
            body["lease"] = json!(lease);
            let (status, reply) = node.post(&endpoint.path, body).await;
            is_error(
                &format!("{} with lease {lease}", endpoint.name),
                status,
                &reply,
                409,
                "lease_lost",
            );
        }
    }
    for endpoint in
        all.iter().filter(|e| !e.body["agent_id"].is_null() && !e.name.ends_with("register"))
    {
        let mut body = endpoint.body.clone();
        body["agent_id"] = json!("nobody");
        let (status, reply) = node.post(&endpoint.path, body).await;
        is_error(&format!("{} by nobody", endpoint.name), status, &reply, 404, "not_found");
    }
    assert_eq!(fingerprint(&db).await, before);
    node.stop().await;
}

#[tokio::test]
async fn null_counts_as_absent_and_unknown_fields_are_ignored() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let registered = node
        .must(
            "/api/v1/agents/register",
            json!({"agent_id": "a", "agent_type": "t", "hostname": "h", "capabilities": null,
                   "max_concurrency": null, "metadata": null, "resume": null, "what": {"e": "ver"}}),
        )
        .await;
    assert_eq!(registered["agent_id"], "a");
    let task = node
        .must(
            "/api/v1/tasks",
            json!({"title": "t", "body": null, "labels": null, "priority": null, "execution_mode": null,
                   "key": null, "run_at": null, "timeout_secs": null, "max_retries": null, "repo": null,
                   "issue_url": null, "what": 1, "more": {"a\0": "\0"}}),
        )
        .await;
    let taken = node
        .must(
            "/api/v1/tasks/dequeue",
            json!({"agent_id": "a", "capabilities": null, "wait_secs": null, "z": 1}),
        )
        .await;
    assert_eq!(taken["task_id"], task["task_id"]);
    let done = node
        .must(
            "/api/v1/receipts",
            json!({"agent_id": "a", "task_id": task["task_id"], "lease": null, "status": "completed",
                   "duration_seconds": null, "summary": null, "artifacts": null, "error": null, "usage": null,
                   "future": [1, 2]}),
        )
        .await;
    assert_eq!(done["status"], "completed");
    db.check_history().await;
    node.stop().await;
}
