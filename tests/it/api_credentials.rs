//! Who may call what, and what is kept of a credential.

use agent_fleet::config::Secret;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{
    api::{Endpoint, Needs, endpoints, fingerprint, is_error, request},
    db::Db,
    node::Node,
};

const TOKENS: &str = r#"
[auth]
mode = "token"
admin_token = ["admin-old", "admin-new"]
operator_token = ["operator-old", "operator-new"]
viewer_token = ["viewer-old", "viewer-new"]
enrollment_token = ["enrollment-old", "enrollment-new"]
shared_agent_token = ["shared-old", "shared-new"]
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    Stranger,
    Viewer,
    Operator,
    Enrollment,
    SharedAgent,
    OtherAgent,
    OwnAgent,
    Admin,
}

impl Who {
    const ALL: [Self; 9] = [
        Self::Nobody,
        Self::Stranger,
        Self::Viewer,
        Self::Operator,
        Self::Enrollment,
        Self::SharedAgent,
        Self::OtherAgent,
        Self::OwnAgent,
        Self::Admin,
    ];

    /// What the contract answers: `None` when it may.
    fn refusal(self, endpoint: &Endpoint) -> Option<(u16, &'static str)> {
        let may: &[Self] = match endpoint.needs {
            Needs::Nothing => return None,
            Needs::Signature => return Some((401, "bad_signature")),
            Needs::Reader => &[Self::Viewer, Self::Operator, Self::Admin],
            Needs::ReaderOrHolder => {
                &[Self::Viewer, Self::Operator, Self::OwnAgent, Self::SharedAgent, Self::Admin]
            }
            Needs::Operator => &[Self::Operator, Self::Admin],
            Needs::Admin => &[Self::Admin],
            // The agent is registered and has used its token: enrollment cannot take it over.
            Needs::Enrollment | Needs::Agent => &[Self::OwnAgent, Self::SharedAgent, Self::Admin],
        };
        match self {
            who if may.contains(&who) => None,
            Self::Nobody | Self::Stranger => Some((401, "unauthorized")),
            _ => Some((403, "forbidden")),
        }
    }
}

async fn register(node: &Node, token: &str, agent_id: &str) -> (StatusCode, Value) {
    let body = json!({"agent_id": agent_id, "agent_type": "t", "hostname": "h"});
    node.send(Method::POST, "/api/v1/agents/register", Some(token), Some(&body)).await
}

async fn registered(node: &Node, token: &str, agent_id: &str) -> String {
    let (status, reply) = register(node, token, agent_id).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    reply["registry_token"].as_str().unwrap().to_owned()
}

async fn heartbeat(node: &Node, token: &str, agent_id: &str) -> (StatusCode, Value) {
    let body = json!({"agent_id": agent_id});
    node.send(Method::POST, "/api/v1/agents/heartbeat", Some(token), Some(&body)).await
}

#[tokio::test]
async fn every_credential_against_every_endpoint() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let own = registered(&node, "enrollment-new", "a").await;
    let other = registered(&node, "enrollment-old", "b").await;
    assert_eq!(heartbeat(&node, &other, "b").await.0, StatusCode::OK);
    let post = async |path: &str, token: &str, body: Value| {
        let (status, reply) = node.send(Method::POST, path, Some(token), Some(&body)).await;
        assert!(status.is_success(), "{path}: {status} {reply}");
        reply
    };
    post("/api/v1/tasks", "operator-new", json!({"title": "t", "max_retries": 9})).await;
    let task = post("/api/v1/tasks/dequeue", &own, json!({"agent_id": "a"})).await;
    let all = endpoints(task["task_id"].as_str().unwrap(), "a", task["lease"].as_i64().unwrap());
    let token_of = |who| match who {
        Who::Nobody => None,
        Who::Stranger => Some("nobody-knows-this"),
        Who::Viewer => Some("viewer-new"),
        Who::Operator => Some("operator-old"),
        Who::Enrollment => Some("enrollment-new"),
        Who::SharedAgent => Some("shared-old"),
        Who::OtherAgent => Some(other.as_str()),
        Who::OwnAgent => Some(own.as_str()),
        Who::Admin => Some("admin-new"),
    };
    let body_of = |endpoint: &Endpoint| (!endpoint.body.is_null()).then(|| endpoint.body.clone());

    let before = fingerprint(&db).await;
    for endpoint in &all {
        for who in Who::ALL {
            let Some((status, code)) = who.refusal(endpoint) else { continue };
            let body = body_of(endpoint);
            let (got, reply) = node
                .send(endpoint.method.clone(), &endpoint.path, token_of(who), body.as_ref())
                .await;
            let what = format!("{who:?}: {} {}", endpoint.method, endpoint.name);
            is_error(&what, got, &reply, status, code);
        }
    }
    assert_eq!(fingerprint(&db).await, before, "a refused call changed something");

    // Who may is never refused; registering comes last, for it ends what the others need.
    let (last, first): (Vec<_>, Vec<_>) = all.iter().partition(|e| {
        e.needs == Needs::Enrollment || e.name.ends_with("deregister") || e.method == Method::DELETE
    });
    for endpoint in first {
        for who in Who::ALL.into_iter().filter(|who| who.refusal(endpoint).is_none()) {
            let body = body_of(endpoint);
            let (got, reply) = node
                .send(endpoint.method.clone(), &endpoint.path, token_of(who), body.as_ref())
                .await;
            let what = format!("{who:?}: {} {}: {got} {reply}", endpoint.method, endpoint.name);
            // Some are refused for the task's state, which others of the list have changed.
            assert!(got.is_success() || got == 400 || got == 409, "{what}");
            assert!(got.is_success() || endpoint.method == Method::POST, "{what}");
        }
    }
    for endpoint in last {
        let body = body_of(endpoint);
        let (got, reply) = node
            .send(endpoint.method.clone(), &endpoint.path, Some("admin-old"), body.as_ref())
            .await;
        assert_eq!(got, StatusCode::OK, "{}: {reply}", endpoint.name);
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_credential_has_one_form_and_each_of_a_list_is_good() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    for good in
        ["Bearer admin-old", "bearer admin-new", "BEARER viewer-old", "Bearer  operator-new "]
    {
        let reply =
            request(&node, &Method::GET, "/api/v1/tasks", &[("authorization", good)], None).await;
        assert_eq!(reply.status, StatusCode::OK, "{good}");
    }
    for bad in [
        "admin-old",
        "Bearer",
        "Bearer ",
        "Basic YWRtaW4tb2xkOg==",
        "Bearer admin-old,admin-new",
        "Bearer admin-ol",
        "Bearer admin-oldx",
        "Bearer ADMIN-OLD",
    ] {
        let reply =
            request(&node, &Method::GET, "/api/v1/tasks", &[("authorization", bad)], None).await;
        reply.is_error(bad, 401, "unauthorized");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
    }
    // A token in the address is none.
    let (status, reply) = node.get("/api/v1/tasks?token=admin-old&access_token=admin-old").await;
    is_error("a token in the query", status, &reply, 401, "unauthorized");
    node.stop().await;
}

#[tokio::test]
async fn only_digests_of_tokens_are_stored() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let first = registered(&node, "enrollment-new", "a").await;
    assert_eq!(heartbeat(&node, &first, "a").await.0, StatusCode::OK);
    let second = registered(&node, &first, "a").await;
    let mut dump = String::new();
    for table in db
        .rows("select oid::regclass::text from pg_class where relnamespace = 'fleet'::regnamespace and relkind = 'r'", &[])
        .await
    {
        let sql = format!("select to_jsonb(t)::text from {} t", table.get::<_, String>(0));
        for row in db.rows(&sql, &[]).await {
            dump.push_str(&row.get::<_, String>(0));
            dump.push('\n');
        }
    }
    for token in [&first, &second] {
        assert_eq!(token.len(), 64);
        assert!(dump.contains(&hex::encode(Sha256::digest(token))), "the digest is stored");
        assert!(!dump.contains(token.as_str()), "the token itself is stored");
        assert!(!dump.contains(&hex::encode(token)), "the token's bytes are stored");
    }
    for configured in ["admin-old", "operator-new", "viewer-new", "enrollment-new"] {
        assert!(!dump.contains(configured));
    }
    assert!(!format!("{:?}", node.replica.config.auth).contains("admin-old"));
    assert_eq!(format!("{:?}", Secret::new("x")), "[secret]");
    node.stop().await;
}

#[tokio::test]
async fn the_rules_of_registering_again() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let unused = registered(&node, "enrollment-new", "a").await;
    // Never used: whoever enrolled may have lost the reply.
    let first = registered(&node, "enrollment-old", "a").await;
    let refused = async |what: &str, (status, reply): (StatusCode, Value), wanted, code: &str| {
        is_error(what, status, &reply, wanted, code);
    };
    refused("a replaced token", heartbeat(&node, &unused, "a").await, 401, "unauthorized").await;
    assert_eq!(heartbeat(&node, &first, "a").await.0, StatusCode::OK);
    refused(
        "enrollment for a used id",
        register(&node, "enrollment-new", "a").await,
        403,
        "forbidden",
    )
    .await;

    let second = registered(&node, &first, "a").await;
    // The new one is unused, but not the one before.
    refused("enrollment again", register(&node, "enrollment-new", "a").await, 403, "forbidden")
        .await;
    let other = registered(&node, "enrollment-new", "b").await;
    refused("another's token", register(&node, &other, "a").await, 403, "forbidden").await;

    // The old token registers and does nothing else; a lost reply costs nothing.
    refused("the old token", heartbeat(&node, &first, "a").await, 409, "session_ended").await;
    let third = registered(&node, &first, "a").await;
    refused(
        "a token that was never used",
        heartbeat(&node, &second, "a").await,
        401,
        "unauthorized",
    )
    .await;
    assert_eq!(heartbeat(&node, &third, "a").await.0, StatusCode::OK);
    refused(
        "the old token, the new one used",
        register(&node, &first, "a").await,
        401,
        "unauthorized",
    )
    .await;
    refused("by a viewer", register(&node, "viewer-old", "c").await, 403, "forbidden").await;
    refused("by an operator", register(&node, "operator-old", "c").await, 403, "forbidden").await;

    // Deregistered, id and token stay valid for registering, and for nothing else.
    let body = json!({"agent_id": "a"});
    let (status, _) =
        node.send(Method::POST, "/api/v1/agents/deregister", Some(&third), Some(&body)).await;
    assert_eq!(status, StatusCode::OK);
    refused("a heartbeat after it", heartbeat(&node, &third, "a").await, 409, "session_ended")
        .await;
    let fourth = registered(&node, &third, "a").await;
    assert_eq!(heartbeat(&node, &fourth, "a").await.0, StatusCode::OK);
    // The admin may always.
    registered(&node, "admin-new", "a").await;
    node.stop().await;
}

#[tokio::test]
async fn an_ended_session_loses_its_leases_and_every_other_call() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let old = registered(&node, "enrollment-new", "a").await;
    let body = json!({"title": "t"});
    node.send(Method::POST, "/api/v1/tasks", Some("operator-new"), Some(&body)).await;
    let body = json!({"agent_id": "a"});
    let (_, task) = node.send(Method::POST, "/api/v1/tasks/dequeue", Some(&old), Some(&body)).await;
    let all = endpoints(task["task_id"].as_str().unwrap(), "a", task["lease"].as_i64().unwrap());
    let new = registered(&node, &old, "a").await;
    let ended = async |token: &str| {
        for endpoint in &all {
            let code = match (endpoint.needs, endpoint.body["lease"].is_null()) {
                (Needs::Agent, false) => "lease_lost",
                (Needs::Agent, true) | (Needs::ReaderOrHolder, _) => "session_ended",
                _ => continue,
            };
            let body = (!endpoint.body.is_null()).then_some(&endpoint.body);
            let (status, reply) =
                node.send(endpoint.method.clone(), &endpoint.path, Some(token), body).await;
            is_error(&format!("{} {}", endpoint.method, endpoint.name), status, &reply, 409, code);
        }
    };
    ended(&old).await;
    let body = json!({"agent_id": "a"});
    let (status, _) =
        node.send(Method::POST, "/api/v1/agents/deregister", Some(&new), Some(&body)).await;
    assert_eq!(status, StatusCode::OK);
    ended(&new).await;
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn open_mode_serves_this_machine_only() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    for (name, value) in [
        ("host", "example.org"),
        ("host", "fleet.example.org:9090"),
        ("host", "127.0.0.1.example.org"),
        ("origin", "https://example.org"),
        ("origin", "http://localhost.example.org"),
        ("origin", "null"),
        ("forwarded", "for=127.0.0.1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "localhost"),
        ("x-forwarded-proto", "http"),
    ] {
        for (method, path, body) in [
            (Method::GET, "/api/v1/tasks", None),
            (Method::POST, "/api/v1/tasks", Some(br#"{"title":"t"}"#.to_vec())),
        ] {
            let headers = [(name, value), ("content-type", "application/json")];
            let reply = request(&node, &method, path, &headers, body).await;
            reply.is_error(&format!("{method} with {name}: {value}"), 403, "forbidden");
        }
    }
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 0);
    for (name, value) in [
        ("host", "localhost:9090"),
        ("host", "127.0.0.1"),
        ("host", "[::1]:80"),
        ("origin", "http://localhost:3000"),
        ("origin", "http://127.0.0.1"),
    ] {
        let reply = request(&node, &Method::GET, "/api/v1/tasks", &[(name, value)], None).await;
        assert_eq!(reply.status, StatusCode::OK, "{name}: {value}");
    }
    node.stop().await;
}

#[tokio::test]
async fn an_agent_sees_what_is_or_was_its_own_and_nothing_else() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let token = registered(&node, "enrollment-new", "a").await;
    registered(&node, "enrollment-new", "b").await;
    let admin = async |path: &str, body: Value| {
        let (status, reply) = node.send(Method::POST, path, Some("admin-new"), Some(&body)).await;
        assert!(status.is_success(), "{path}: {status} {reply}");
        reply
    };
    let create = async || {
        let task = admin("/api/v1/tasks", json!({"title": "t"})).await;
        task["task_id"].as_str().unwrap().to_owned()
    };
    let assign = async |id: &str, to: &str| {
        admin(&format!("/api/v1/tasks/{id}/assign"), json!({"agent_id": to})).await
    };
    let sees = async |id: &str| {
        let mut statuses = Vec::new();
        for path in [format!("/api/v1/tasks/{id}"), format!("/api/v1/tasks/{id}/logs")] {
            let (status, _) = node.send(Method::GET, &path, Some(&token), None).await;
            statuses.push(status.as_u16());
        }
        assert_eq!(statuses[0], statuses[1], "a task and its output are seen alike");
        statuses[0]
    };
    let (foreign, pinned, was_pinned) = (create().await, create().await, create().await);
    assign(&was_pinned, "a").await;
    assign(&was_pinned, "b").await;
    assign(&foreign, "b").await;
    let held = create().await;
    let was_held = create().await;
    for id in [&was_held, &held] {
        assign(id, "a").await;
        let task = admin("/api/v1/tasks/dequeue", json!({"agent_id": "a"})).await;
        assert_eq!(task["task_id"], id.as_str());
        if id == &was_held {
            let body = json!({"agent_id": "a", "lease": task["lease"]});
            admin(&format!("/api/v1/tasks/{id}/release"), body).await;
            assign(id, "b").await;
        }
    }
    assign(&pinned, "a").await;
    assert_eq!(sees(&foreign).await, 403);
    for (what, id) in
        [("pinned", &pinned), ("was pinned", &was_pinned), ("held", &held), ("was held", &was_held)]
    {
        assert_eq!(sees(id).await, 200, "{what}");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn the_shared_token_serves_every_agent_and_nothing_else() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", TOKENS).await;
    let call = async |path: &str, body: Value| {
        node.send(Method::POST, path, Some("shared-new"), Some(&body)).await
    };
    for agent in ["a", "b", "a"] {
        assert_eq!(register(&node, "shared-old", agent).await.0, StatusCode::OK);
        assert_eq!(heartbeat(&node, "shared-new", agent).await.0, StatusCode::OK);
    }
    let (status, _) = node
        .send(Method::POST, "/api/v1/tasks", Some("operator-new"), Some(&json!({"title": "t"})))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, task) = call("/api/v1/tasks/dequeue", json!({"agent_id": "b"})).await;
    assert_eq!(status, StatusCode::OK);
    let body = json!({"agent_id": "b", "lease": task["lease"], "status": "completed"});
    let path = format!("/api/v1/tasks/{}/complete", task["task_id"].as_str().unwrap());
    assert_eq!(call(&path, body).await.0, StatusCode::OK);
    let (status, reply) = call("/api/v1/tasks", json!({"title": "t"})).await;
    is_error("creating", status, &reply, 403, "forbidden");
    let (status, reply) = node.send(Method::GET, "/api/v1/tasks", Some("shared-new"), None).await;
    is_error("listing", status, &reply, 403, "forbidden");
    node.stop().await;
}
