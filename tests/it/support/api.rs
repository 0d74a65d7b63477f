//! Every endpoint of the API with a body that it takes, and requests that no well-behaved client sends.

use std::collections::BTreeMap;

use reqwest::{Client, Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{db::Db, node::Node};

/// Who may call an endpoint; an admin may call each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// No credential at all.
    Nothing,
    /// Viewer or operator.
    Reader,
    /// The same, or the agent whose task it is.
    ReaderOrHolder,
    Operator,
    /// The enrollment token, or the agent's own.
    Enrollment,
    /// The agent's own token.
    Agent,
    /// The admin token.
    Admin,
    /// A signature.
    Signature,
}

/// One endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) method: Method,
    /// As in the contract, with `{id}` for the task.
    pub(crate) name: &'static str,
    pub(crate) path: String,
    /// A body that is right in form; null for a GET.
    pub(crate) body: Value,
    pub(crate) needs: Needs,
    /// MiB that a body may have.
    pub(crate) limit: usize,
}

impl Endpoint {
    /// Whether its body may be left out.
    pub(crate) fn may_be_empty(&self) -> bool {
        let acts = ["/retry", "/cancel", "/drain", "/resume"];
        acts.iter().any(|act| self.name.ends_with(act)) && !self.name.contains("/queues/")
    }
}

/// All of them, about this task, by this agent.
pub(crate) fn endpoints(task_id: &str, agent_id: &str, lease: i64) -> Vec<Endpoint> {
    use Needs::{Admin, Agent, Enrollment, Nothing, Operator, Reader, ReaderOrHolder, Signature};
    let mut all = Vec::new();
    let mut add = |method: Method, name: &'static str, body: Value, needs, limit| {
        let path = name.replace("{id}", task_id).replace("{agent}", agent_id);
        all.push(Endpoint { method, name, path, body, needs, limit });
    };
    let held = |more: Value| {
        let mut body = json!({"agent_id": agent_id, "lease": lease});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let receipt =
        json!({"status": "completed", "duration_seconds": 1.5, "summary": "s", "artifacts": []});
    for (name, needs) in [
        ("/healthz", Nothing),
        ("/readyz", Nothing),
        ("/api/v1/version", Nothing),
        ("/api/v1/agents", Reader),
        ("/api/v1/agents/{agent}", Reader),
        ("/api/v1/hosts", Reader),
        ("/api/v1/tasks", Reader),
        ("/api/v1/tasks/{id}", ReaderOrHolder),
        ("/api/v1/tasks/{id}/logs", ReaderOrHolder),
        ("/api/v1/events", Reader),
        ("/api/v1/stats", Reader),
    ] {
        add(Method::GET, name, Value::Null, needs, 1);
    }
    let post = Method::POST;
    let register = json!({"agent_id": agent_id, "agent_type": "t", "hostname": "h"});
    add(post.clone(), "/api/v1/agents/register", register, Enrollment, 1);
    add(post.clone(), "/api/v1/agents/heartbeat", json!({"agent_id": agent_id}), Agent, 1);
    add(post.clone(), "/api/v1/tasks", json!({"title": "t"}), Operator, 1);
    add(post.clone(), "/api/v1/tasks/dequeue", json!({"agent_id": agent_id}), Agent, 1);
    add(post.clone(), "/api/v1/tasks/{id}/status", held(json!({"status": "running"})), Agent, 1);
    add(post.clone(), "/api/v1/tasks/{id}/logs", held(json!({"offset": 0, "data": "d"})), Agent, 5);
    add(post.clone(), "/api/v1/tasks/{id}/release", held(json!({})), Agent, 1);
    add(post.clone(), "/api/v1/tasks/{id}/complete", held(receipt.clone()), Agent, 5);
    let mut addressed = held(receipt);
    addressed["task_id"] = json!(task_id);
    add(post.clone(), "/api/v1/receipts", addressed, Agent, 5);
    let target = json!({"agent_id": agent_id});
    add(post.clone(), "/api/v1/tasks/{id}/assign", target, Operator, 1);
    add(post.clone(), "/api/v1/tasks/{id}/retry", json!({}), Operator, 1);
    add(post.clone(), "/api/v1/tasks/{id}/cancel", json!({}), Operator, 1);
    add(post.clone(), "/api/v1/agents/{agent}/drain", json!({}), Admin, 1);
    add(post.clone(), "/api/v1/agents/{agent}/resume", json!({}), Admin, 1);
    add(post.clone(), "/api/v1/agents/deregister", json!({"agent_id": agent_id}), Agent, 1);
    for act in ["/api/v1/queues/pause", "/api/v1/queues/resume"] {
        add(post.clone(), act, json!({"capabilities": ["agent:none"]}), Admin, 1);
    }
    add(Method::DELETE, "/api/v1/agents/{agent}", Value::Null, Admin, 1);
    add(post, "/api/v1/webhooks/forgejo", json!({}), Signature, 5);
    all
}

/// A reply in full.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Null when it is not JSON.
    pub(crate) body: Value,
}

impl Reply {
    /// Panics unless it is this error, in the one shape that errors have. Returns its sentence.
    #[track_caller]
    pub(crate) fn is_error(&self, what: &str, status: u16, code: &str) -> String {
        is_error(what, self.status, &self.body, status, code)
    }
}

/// The same for a reply of [`Node::send`].
#[track_caller]
pub(crate) fn is_error(
    what: &str,
    status: StatusCode,
    body: &Value,
    wanted: u16,
    code: &str,
) -> String {
    assert_eq!(status.as_u16(), wanted, "{what}: {body}");
    let fields: Vec<&String> =
        body.as_object().unwrap_or_else(|| panic!("{what}: {body}")).keys().collect();
    assert_eq!(fields, ["code", "error"], "{what}: {body}");
    assert_eq!(body["code"], code, "{what}: {body}");
    let sentence = body["error"].as_str().unwrap().to_owned();
    for internal in ["fleet.", "SQLSTATE", "tokio", "panicked", "select ", "src/"] {
        assert!(!sentence.contains(internal), "{what} tells internals: {sentence}");
    }
    sentence
}

/// A request with these headers and no others.
pub(crate) async fn request(
    node: &Node,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Vec<u8>>,
) -> Reply {
    let mut request = Client::new().request(method.clone(), format!("{}{path}", node.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(body) = body {
        request = request.body(body);
    }
    let reply = request.send().await.unwrap();
    let (status, headers) = (reply.status(), reply.headers().clone());
    let body = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap_or(Value::Null);
    Reply { status, headers, body }
}

/// A POST of these bytes as JSON.
pub(crate) async fn post_bytes(node: &Node, path: &str, body: impl Into<Vec<u8>>) -> Reply {
    let headers = [("content-type", "application/json")];
    request(node, &Method::POST, path, &headers, Some(body.into())).await
}

/// Writes these bytes to the replica and reads the reply until the body is whole.
pub(crate) async fn raw(node: &Node, parts: &[&[u8]]) -> Reply {
    let address = node.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    for part in parts {
        stream.write_all(part).await.unwrap();
    }
    let mut read = Vec::new();
    let reading = async {
        loop {
            if let Some(reply) = whole(&read) {
                return reply;
            }
            let count = stream.read_buf(&mut read).await.unwrap();
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), reading).await.unwrap()
}

fn whole(read: &[u8]) -> Option<Reply> {
    let text = std::str::from_utf8(read).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length: usize = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
    })?;
    let body = serde_json::from_str(body.get(..length)?).unwrap_or(Value::Null);
    Some(Reply { status: StatusCode::from_u16(status).ok()?, headers: HeaderMap::new(), body })
}

/// Every table's rows, but for what beats by itself. Two of them are equal when nothing has changed.
pub(crate) async fn fingerprint(db: &Db) -> BTreeMap<String, String> {
    let tables = db
        .rows(
            "select c.relname::text from pg_class c
              where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition",
            &[],
        )
        .await;
    let mut found = BTreeMap::new();
    for table in tables {
        let name: String = table.get(0);
        let sql = format!(
            "select count(*) || ' ' || md5(coalesce(string_agg(row, ',' order by row), ''))
               from (select (to_jsonb(t) - array['last_heartbeat_at', 'steady_since', 'checked_at'])::text as row
                       from fleet.{name} t) x"
        );
        found.insert(name, db.rows(&sql, &[]).await[0].get(0));
    }
    assert!(found.contains_key("tasks") && found.contains_key("task_events"));
    found
}
