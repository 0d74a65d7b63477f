//! Bad input at every door: the error of the contract, and nothing changed.

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{db::Db, node::Node};

/// Every POST of the API with a body that it takes.
fn doors(task: &str) -> Vec<(String, Value)> {
    let of = |act: &str| format!("/api/v1/tasks/{task}/{act}");
    let held = |more: Value| {
        let mut body = json!({"agent_id": "a", "lease": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    vec![
        ("/api/v1/tasks".into(), json!({"title": "t"})),
        (
            "/api/v1/agents/register".into(),
            json!({"agent_id": "b", "agent_type": "t", "hostname": "h"}),
        ),
        ("/api/v1/agents/heartbeat".into(), json!({"agent_id": "a"})),
        ("/api/v1/agents/deregister".into(), json!({"agent_id": "a"})),
        ("/api/v1/tasks/dequeue".into(), json!({"agent_id": "a"})),
        (of("status"), held(json!({"status": "running"}))),
        (of("complete"), held(json!({"status": "completed", "summary": "s"}))),
        ("/api/v1/receipts".into(), held(json!({"status": "completed", "task_id": task}))),
        (of("release"), held(json!({"reason": "r"}))),
        (of("logs"), held(json!({"offset": 0, "data": "x"}))),
        (of("assign"), json!({"agent_id": "a"})),
        (of("retry"), json!({"execution_mode": "undecided"})),
        (of("cancel"), json!({"reason": "r"})),
    ]
}

struct Door {
    db: Db,
    node: Node,
    http: Client,
    task: String,
}

impl Door {
    /// A replica with one agent that holds one task, and one that waits.
    async fn open() -> Self {
        let db = Db::new().await;
        let node = Node::start(&db, "r1", "").await;
        node.register("a", &["agent:x"], 5).await;
        let task = node.create("t", &["agent:x"]).await;
        assert!(node.dequeue("a", 0).await.is_some());
        Self { db, node, http: Client::new(), task }
    }

    /// What must not change; sessions' heartbeats may.
    async fn fingerprint(&self) -> String {
        let rows = self
            .db
            .rows(
                "select md5(string_agg(x, '|' order by x)) from (
                   select t::text as x from fleet.tasks t union all select s::text from fleet.task_specs s
                   union all select e.event_id::text from fleet.task_events e union all select r::text from fleet.receipts r
                   union all select a::text from fleet.agents a union all select g.data::text from fleet.task_logs g
                   union all select d::text from fleet.webhook_deliveries d union all select i::text from fleet.forge_issues i) y",
                &[],
            )
            .await;
        rows[0].get(0)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> (StatusCode, Value) {
        let request = self.http.request(method, format!("{}{path}", self.node.url));
        let reply = request.header("content-type", content_type).body(body).send().await.unwrap();
        let status = reply.status();
        let text = reply.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Sends, and demands the status, the shape of an error, and that nothing changed.
    async fn refused(
        &self,
        what: &str,
        wanted: u16,
        answer: impl Future<Output = (StatusCode, Value)>,
    ) -> Value {
        let before = self.fingerprint().await;
        let (status, body) = answer.await;
        assert_eq!(status.as_u16(), wanted, "{what}: {body}");
        let error = body["error"].as_str().unwrap_or_else(|| panic!("{what}: no error in {body}"));
        assert!(!error.is_empty() && body["code"].is_string(), "{what}: {body}");
        for inside in ["fleet.", "SQL", "panicked", "tokio", "src/"] {
            assert!(!error.contains(inside), "{what} shows its inside: {error}");
        }
        assert_eq!(before, self.fingerprint().await, "{what} changed something");
        body
    }

    async fn stop(self) {
        // Whatever was thrown at it, it still serves.
        assert_eq!(self.node.get("/readyz").await.0, StatusCode::OK);
        self.db.check_history().await;
        self.node.stop().await;
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_object_of_the_right_kind() {
    let door = Door::open().await;
    for (path, body) in doors(&door.task) {
        for (what, bytes) in [
            ("cut", br#"{"agent_id": "a"#.to_vec()),
            ("not UTF-8", b"{\"agent_id\": \"\xff\xfe\", \"title\": \"\xff\"}".to_vec()),
            ("a lone surrogate", br#"{"agent_id": "\ud800", "title": "\ud800"}"#.to_vec()),
            ("a number", b"7".to_vec()),
            ("a text", br#""x""#.to_vec()),
            ("deep", format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes()),
        ] {
            let send = door.send(Method::POST, &path, "application/json", bytes);
            door.refused(&format!("{path} {what}"), 400, send).await;
        }
        let send = door.send(Method::POST, &path, "text/plain", body.to_string().into_bytes());
        door.refused(&format!("{path} as text/plain"), 415, send).await;
        let send = door.send(Method::DELETE, &path, "application/json", Vec::new());
        door.refused(&format!("{path} by DELETE"), 405, send).await;
    }
    door.stop().await;
}

#[tokio::test]
async fn missing_and_mistyped_fields_are_named() {
    let door = Door::open().await;
    for (path, body) in doors(&door.task) {
        let optional = ["reason", "execution_mode", "lease", "summary"];
        for field in body.as_object().unwrap().keys() {
            for bad in [json!([[]]), json!({"x": 1}), json!(true)] {
                let mut bent = body.clone();
                bent[field] = bad;
                let send = door.send(
                    Method::POST,
                    &path,
                    "application/json",
                    bent.to_string().into_bytes(),
                );
                let error = door.refused(&format!("{path} {bent}"), 400, send).await;
                assert!(
                    error["error"].as_str().unwrap().contains(field.as_str()),
                    "{path} {bent}: {error}"
                );
            }
            let lease_needed =
                field == "lease" && !path.ends_with("complete") && !path.ends_with("receipts");
            if optional.contains(&field.as_str()) && !lease_needed {
                continue;
            }
            let mut without = body.clone();
            without[field] = Value::Null;
            let send = door.send(
                Method::POST,
                &path,
                "application/json",
                without.to_string().into_bytes(),
            );
            let error = door.refused(&format!("{path} without {field}"), 400, send).await;
            assert!(error["error"].as_str().unwrap().contains(field.as_str()), "{path}: {error}");
        }
    }
    door.stop().await;
}

#[tokio::test]
async fn numbers_and_texts_out_of_bounds() {
    let door = Door::open().await;
    let long = "x".repeat(1_001);
    let task = &door.task;
    let of = |act: &str| format!("/api/v1/tasks/{task}/{act}");
    let register = |more: Value| {
        let mut body = json!({"agent_id": "b", "agent_type": "t", "hostname": "h"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let seventeen: Vec<String> = (0..17).map(|n| format!("agent:{n}")).collect();
    for (path, body) in [
        ("/api/v1/tasks".to_owned(), json!({"title": ""})),
        ("/api/v1/tasks".to_owned(), json!({"title": long})),
        ("/api/v1/tasks".to_owned(), json!({"title": "a\u{0}b"})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "body": "a\u{0}b"})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "labels": ["agent:\u{0}"]})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "labels": seventeen})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "timeout_secs": 0})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "timeout_secs": -1})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "timeout_secs": 1e300})),
        (
            "/api/v1/tasks".to_owned(),
            json!({"title": "t", "max_retries": 9_223_372_036_854_775_807_i64}),
        ),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "priority": "top"})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "execution_mode": "Undecided"})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "run_at": "tomorrow"})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "key": ""})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "key": "a\nb"})),
        ("/api/v1/tasks".to_owned(), json!({"title": "t", "repo": {"clone_url": "x"}})),
        ("/api/v1/tasks".to_owned(), json!([])),
        ("/api/v1/tasks".to_owned(), json!(vec![json!({"title": "t"}); 1_001])),
        ("/api/v1/tasks".to_owned(), json!([{"title": "good"}, {"title": 7}])),
        (
            "/api/v1/tasks".to_owned(),
            json!([{"title": "a", "key": "k"}, {"title": "b", "key": "k"}]),
        ),
        ("/api/v1/agents/register".to_owned(), register(json!({"agent_id": "a b"}))),
        ("/api/v1/agents/register".to_owned(), register(json!({"agent_id": "x".repeat(129)}))),
        ("/api/v1/agents/register".to_owned(), register(json!({"max_concurrency": 0}))),
        ("/api/v1/agents/register".to_owned(), register(json!({"max_concurrency": 10_001}))),
        ("/api/v1/agents/register".to_owned(), register(json!({"metadata": {"x": "a\u{0}"}}))),
        ("/api/v1/agents/register".to_owned(), register(json!({"capabilities": ["a\u{0}"]}))),
        ("/api/v1/tasks/dequeue".to_owned(), json!({"agent_id": "a", "wait_secs": -1})),
        (of("status"), json!({"agent_id": "a", "lease": 1, "status": "completed"})),
        (
            of("status"),
            json!({"agent_id": "a", "lease": 1, "status": "running", "progress": "a\u{0}"}),
        ),
        (of("complete"), json!({"agent_id": "a", "lease": 1, "status": "done"})),
        (
            of("complete"),
            json!({"agent_id": "a", "lease": 1, "status": "completed", "summary": "a\u{0}"}),
        ),
        (
            of("complete"),
            json!({"agent_id": "a", "lease": 1, "status": "completed", "artifacts": [{"type": "pr"}]}),
        ),
        (
            of("complete"),
            json!({"agent_id": "a", "lease": 1, "status": "completed", "usage": {"input_tokens": -1}}),
        ),
        (
            of("complete"),
            json!({"agent_id": "a", "lease": 1, "status": "completed", "duration_seconds": -1}),
        ),
        (
            of("complete"),
            json!({"agent_id": "a", "lease": 1, "status": "completed", "task_id": "other/key#1"}),
        ),
        (of("release"), json!({"agent_id": "a", "lease": 1, "retry_after_secs": -1})),
        (of("logs"), json!({"agent_id": "a", "lease": 1, "offset": -1, "data": "x"})),
        (of("logs"), json!({"agent_id": "a", "lease": 1, "offset": 5, "data": "x"})),
        (of("assign"), json!({"agent_id": "a", "execution_mode": "ssh_cli"})),
        (of("retry"), json!({"execution_mode": "soon"})),
        (of("cancel"), json!({"reason": "a\u{0}"})),
    ] {
        let shown: String = body.to_string().chars().take(120).collect();
        let send =
            door.send(Method::POST, &path, "application/json", body.to_string().into_bytes());
        door.refused(&format!("{path} {shown}"), 400, send).await;
    }
    for query in [
        "tasks?limit=0",
        "tasks?limit=501",
        "tasks?limit=x",
        "tasks?status=done",
        "tasks?cursor=x",
        "tasks?q=%ff",
        "tasks?execution_mode=x",
        "agents?status=x",
        "hosts?limit=-1",
        "events?after=x",
        "events?after=99999999",
    ] {
        let path = format!("/api/v1/{query}");
        let send = door.send(Method::GET, &path, "", Vec::new());
        door.refused(query, 400, send).await;
    }
    door.stop().await;
}

#[tokio::test]
async fn what_is_unknown_or_anothers() {
    let door = Door::open().await;
    let nobody = uuid::Uuid::from_u128(7).to_string();
    for (path, body) in doors(&nobody) {
        if path.contains("/tasks/") && !path.ends_with("dequeue") {
            let send =
                door.send(Method::POST, &path, "application/json", body.to_string().into_bytes());
            door.refused(&path, 404, send).await;
        }
    }
    for (path, mut body) in doors(&door.task) {
        if body.get("agent_id").is_some() && !path.ends_with("register") {
            body["agent_id"] = json!("nobody");
            let send =
                door.send(Method::POST, &path, "application/json", body.to_string().into_bytes());
            door.refused(&format!("{path} by nobody"), 404, send).await;
        }
        if body.get("lease").is_some() {
            body["agent_id"] = json!("a");
            for lease in [0, 2, i64::MAX] {
                body["lease"] = json!(lease);
                let send = door.send(
                    Method::POST,
                    &path,
                    "application/json",
                    body.to_string().into_bytes(),
                );
                let error = door.refused(&format!("{path} lease {lease}"), 409, send).await;
                assert_eq!(error["code"], "lease_lost");
            }
        }
    }
    for path in [
        "/",
        "/api",
        "/api/v1/nothing",
        "/api/v1/tasks/x/y/z",
        "/api/v2/tasks",
        "/api/v1/tasks/no%2Fsuch%231",
    ] {
        let send = door.send(Method::GET, path, "", Vec::new());
        door.refused(path, 404, send).await;
    }
    let send = door.send(Method::GET, "/api/v1/tasks/%ff%fe", "", Vec::new());
    door.refused("a key that is not UTF-8", 400, send).await;
    door.stop().await;
}

#[tokio::test]
async fn bodies_over_the_limit() {
    let door = Door::open().await;
    let large = format!(r#"{{"title": "{}"}}"#, "x".repeat(1 << 20));
    let send =
        door.send(Method::POST, "/api/v1/tasks", "application/json", large.clone().into_bytes());
    door.refused("announced", 413, send).await;
    // A chunked body announces no length.
    let chunked = async {
        let parts = large
            .into_bytes()
            .chunks(60_000)
            .map(|c| Ok::<_, std::io::Error>(c.to_vec()))
            .collect::<Vec<_>>();
        let mut raw = Vec::new();
        for part in parts.into_iter().flatten() {
            raw.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            raw.extend_from_slice(&part);
            raw.extend_from_slice(b"\r\n");
        }
        raw.extend_from_slice(b"0\r\n\r\n");
        raw_post(&door.node.url, "/api/v1/tasks", &raw).await
    };
    door.refused("chunked", 413, chunked).await;
    let send = door.send(
        Method::POST,
        "/api/v1/webhooks/forgejo",
        "application/json",
        vec![b' '; (5 << 20) + 1],
    );
    door.refused("a webhook", 413, send).await;
    door.stop().await;
}

/// POSTs a body that is already in chunks; the reply's status and JSON.
async fn raw_post(url: &str, path: &str, chunks: &[u8]) -> (StatusCode, Value) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(chunks).await;
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply).await;
    let text = String::from_utf8_lossy(&reply).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse::<u16>().unwrap();
    (StatusCode::from_u16(status).unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}
