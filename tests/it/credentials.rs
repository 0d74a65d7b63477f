//! Who may do what.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{db::Db, node::Node};

const TOKENS: &str = r#"
[auth]
mode = "token"
admin_token = ["admin-1", "admin-2"]
operator_token = "operator-1"
viewer_token = "viewer-1"
enrollment_token = "enroll-1"
"#;

fn registration(agent_id: &str) -> Value {
    json!({"agent_id": agent_id, "agent_type": "t", "hostname": "h", "capabilities": ["agent:x"]})
}

async fn register(node: &Node, token: &str, agent_id: &str) -> (StatusCode, Value) {
    node.send(Method::POST, "/api/v1/agents/register", Some(token), Some(&registration(agent_id)))
        .await
}

async fn enroll(node: &Node, agent_id: &str) -> String {
    let (status, reply) = register(node, "enroll-1", agent_id).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    reply["registry_token"].as_str().unwrap().to_owned()
}

async fn heartbeat(node: &Node, token: &str, agent_id: &str) -> (StatusCode, Value) {
    node.send(
        Method::POST,
        "/api/v1/agents/heartbeat",
        Some(token),
        Some(&json!({"agent_id": agent_id})),
    )
    .await
}

#[tokio::test]
async fn each_credential_opens_its_own_doors() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let agent = enroll(&node, "a").await;
    let task = node
        .send(
            Method::POST,
            "/api/v1/tasks",
            Some("admin-2"),
            Some(&json!({"title": "t", "labels": ["agent:x"]})),
        )
        .await
        .1["task_id"]
        .as_str()
        .unwrap()
        .to_owned();
    // No door is one that changes something when it opens: what is right is refused for another reason.
    let doors = [
        (
            Method::GET,
            "/api/v1/tasks".to_owned(),
            Value::Null,
            ["admin-1", "operator-1", "viewer-1"].as_slice(),
        ),
        (
            Method::GET,
            format!("/api/v1/tasks/{task}"),
            Value::Null,
            &["admin-1", "operator-1", "viewer-1"],
        ),
        (
            Method::GET,
            format!("/api/v1/tasks/{task}/logs"),
            Value::Null,
            &["admin-1", "operator-1", "viewer-1"],
        ),
        (
            Method::GET,
            "/api/v1/agents".to_owned(),
            Value::Null,
            &["admin-1", "operator-1", "viewer-1"],
        ),
        (
            Method::GET,
            "/api/v1/hosts".to_owned(),
            Value::Null,
            &["admin-1", "operator-1", "viewer-1"],
        ),
        (
            Method::GET,
            "/api/v1/events".to_owned(),
            Value::Null,
            &["admin-1", "operator-1", "viewer-1"],
        ),
        (
            Method::POST,
            "/api/v1/tasks".to_owned(),
            json!({"title": ""}),
            &["admin-1", "operator-1"],
        ),
        (
            Method::POST,
            format!("/api/v1/tasks/{task}/retry"),
            json!({}),
            &["admin-1", "operator-1"],
        ),
        (
            Method::POST,
            format!("/api/v1/tasks/{task}/assign"),
            json!({"agent_id": "none"}),
            &["admin-1", "operator-1"],
        ),
        (
            Method::POST,
            "/api/v1/tasks/none/cancel".to_owned(),
            json!({}),
            &["admin-1", "operator-1"],
        ),
        (
            Method::POST,
            "/api/v1/agents/register".to_owned(),
            registration("!"),
            &["admin-1", "enroll-1"],
        ),
        (
            Method::POST,
            "/api/v1/agents/heartbeat".to_owned(),
            json!({"agent_id": "a"}),
            &["admin-1", agent.as_str()],
        ),
        (
            Method::POST,
            "/api/v1/tasks/dequeue".to_owned(),
            json!({"agent_id": "a", "wait_secs": -1}),
            &["admin-1", agent.as_str()],
        ),
        (
            Method::POST,
            format!("/api/v1/tasks/{task}/release"),
            json!({"agent_id": "a", "lease": 9}),
            &["admin-1", agent.as_str()],
        ),
        (
            Method::POST,
            format!("/api/v1/tasks/{task}/logs"),
            json!({"agent_id": "a", "lease": 9, "offset": 0, "data": ""}),
            &["admin-1", agent.as_str()],
        ),
        (
            Method::POST,
            format!("/api/v1/tasks/{task}/complete"),
            json!({"agent_id": "a", "lease": 9, "status": "failed"}),
            &["admin-1", agent.as_str()],
        ),
    ];
    for (method, path, body, opens_for) in doors {
        let body = (!body.is_null()).then_some(body);
        for token in ["admin-1", "operator-1", "viewer-1", "enroll-1", &agent] {
            let (status, reply) =
                node.send(method.clone(), &path, Some(token), body.as_ref()).await;
            let refused = status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED;
            assert_eq!(
                !refused,
                opens_for.contains(&token),
                "{method} {path} with {token}: {status} {reply}"
            );
        }
        for (token, what) in [
            (None, "no token"),
            (Some("unknown"), "an unknown token"),
            (Some(""), "an empty token"),
        ] {
            let (status, reply) = node.send(method.clone(), &path, token, body.as_ref()).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} with {what}: {reply}");
        }
    }
    for path in ["/healthz", "/readyz", "/api/v1/version"] {
        assert_eq!(node.get(path).await.0, StatusCode::OK, "{path}");
    }
    node.stop().await;
}

#[tokio::test]
async fn an_agent_acts_for_itself_only_and_sees_only_its_own() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let (a, b) = (enroll(&node, "a").await, enroll(&node, "b").await);
    assert_eq!(heartbeat(&node, &a, "b").await.0, StatusCode::FORBIDDEN);
    assert_eq!(register(&node, &a, "b").await.0, StatusCode::FORBIDDEN);
    let body = json!({"title": "t", "labels": ["agent:x"]});
    let (_, task) = node.send(Method::POST, "/api/v1/tasks", Some("operator-1"), Some(&body)).await;
    let path = format!("/api/v1/tasks/{}", task["task_id"].as_str().unwrap());
    assert_eq!(node.send(Method::GET, &path, Some(&a), None).await.0, StatusCode::FORBIDDEN);
    let (status, mine) = node
        .send(Method::POST, "/api/v1/tasks/dequeue", Some(&a), Some(&json!({"agent_id": "a"})))
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(node.send(Method::GET, &path, Some(&a), None).await.0, StatusCode::OK);
    assert_eq!(node.send(Method::GET, &path, Some(&b), None).await.0, StatusCode::FORBIDDEN);
    // It had the task; it may still look when another has it.
    let body = json!({"agent_id": "a", "lease": mine["lease"]});
    assert_eq!(
        node.send(Method::POST, &format!("{path}/release"), Some(&a), Some(&body)).await.0,
        StatusCode::OK
    );
    let (status, _) = node
        .send(
            Method::POST,
            "/api/v1/tasks/dequeue",
            Some(&b),
            Some(&json!({"agent_id": "b", "wait_secs": 5})),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(node.send(Method::GET, &path, Some(&a), None).await.0, StatusCode::OK);
    assert_eq!(
        node.send(Method::GET, &format!("{path}/logs"), Some(&a), None).await.0,
        StatusCode::OK
    );
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn registering_anew_replaces_session_and_token() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let first = enroll(&node, "a").await;
    // Nobody has used it: its reply may have been lost, so the enrollment token may ask again.
    let second = enroll(&node, "a").await;
    assert_eq!(heartbeat(&node, &first, "a").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(heartbeat(&node, &second, "a").await.0, StatusCode::OK);
    // Used: nobody takes the name over.
    assert_eq!(register(&node, "enroll-1", "a").await.0, StatusCode::FORBIDDEN);
    let (_, reply) = register(&node, &second, "a").await;
    let third = reply["registry_token"].as_str().unwrap().to_owned();
    // The old token only registers, until the new one is first used.
    let (status, reply) = heartbeat(&node, &second, "a").await;
    assert_eq!((status, &reply["code"]), (StatusCode::CONFLICT, &json!("session_ended")));
    let (_, reply) = register(&node, &second, "a").await;
    let fourth = reply["registry_token"].as_str().unwrap().to_owned();
    assert_eq!(heartbeat(&node, &third, "a").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(heartbeat(&node, &fourth, "a").await.0, StatusCode::OK);
    assert_eq!(register(&node, &second, "a").await.0, StatusCode::UNAUTHORIZED);
    // Only digests are stored.
    for token in [&first, &second, &third, &fourth] {
        let found = db
            .count(&format!("select count(*) from fleet.agents a where a::text like '%{token}%'"))
            .await;
        assert_eq!(found, 0);
    }
    node.stop().await;
}

#[tokio::test]
async fn the_writes_of_an_old_session_are_lost_leases() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let first = enroll(&node, "a").await;
    let body = json!({"title": "t", "labels": ["agent:x"]});
    let (_, task) = node.send(Method::POST, "/api/v1/tasks", Some("admin-1"), Some(&body)).await;
    let id = task["task_id"].as_str().unwrap();
    let (_, mine) = node
        .send(Method::POST, "/api/v1/tasks/dequeue", Some(&first), Some(&json!({"agent_id": "a"})))
        .await;
    assert_eq!(mine["lease"], 1);
    let mut again = registration("a");
    again["resume"] = json!([id, "no/such#1"]);
    let (_, reply) =
        node.send(Method::POST, "/api/v1/agents/register", Some(&first), Some(&again)).await;
    assert_eq!(reply["resumed"], json!([{"task_id": id, "lease": 1}]));
    assert_eq!(reply["lost"], json!(["no/such#1"]));
    let second = reply["registry_token"].as_str().unwrap();
    let receipt = json!({"agent_id": "a", "lease": 1, "status": "completed", "summary": "s"});
    let path = format!("/api/v1/tasks/{id}/complete");
    let (status, reply) = node.send(Method::POST, &path, Some(&first), Some(&receipt)).await;
    assert_eq!((status, &reply["code"]), (StatusCode::CONFLICT, &json!("lease_lost")));
    // The lease has passed to the new session.
    let (status, reply) = node.send(Method::POST, &path, Some(second), Some(&receipt)).await;
    assert_eq!((status, &reply["status"]), (StatusCode::OK, &json!("completed")), "{reply}");
    // And without `resume` it goes back to the queue.
    let body = json!({"title": "u", "labels": ["agent:x"]});
    node.send(Method::POST, "/api/v1/tasks", Some("admin-1"), Some(&body)).await;
    let (_, mine) = node
        .send(Method::POST, "/api/v1/tasks/dequeue", Some(second), Some(&json!({"agent_id": "a"})))
        .await;
    assert_eq!(register(&node, second, "a").await.0, StatusCode::OK);
    let path = format!("/api/v1/tasks/{}", mine["task_id"].as_str().unwrap());
    let (_, lost) = node.send(Method::GET, &path, Some("viewer-1"), None).await;
    assert_eq!(lost["retry_count"], 1, "{lost}");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn open_mode_is_for_this_machine() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let http = reqwest::Client::new();
    let url = format!("{}/api/v1/tasks", node.url);
    for (header, value, wanted) in [
        ("origin", "http://localhost:3000", 200),
        ("origin", "https://evil.example", 403),
        ("origin", "null", 403),
        ("host", "evil.example", 403),
        ("host", "localhost:9090", 200),
        ("forwarded", "for=1.2.3.4", 403),
        ("x-forwarded-for", "127.0.0.1", 403),
        ("x-forwarded-host", "localhost", 403),
    ] {
        let reply = http.get(&url).header(header, value).send().await.unwrap();
        assert_eq!(reply.status().as_u16(), wanted, "{header}: {value}");
    }
    node.stop().await;
}
