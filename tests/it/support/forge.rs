//! Deliveries as a Forgejo sends them, about issues of a test's own.

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

use super::node::Node;

/// What the replicas of the tests have, see `node`.
pub(crate) const SECRET: &str = "webhook-secret";
/// A whole payload; only what a test is about is changed.
const OPENED: &str = include_str!("../../fixtures/forgejo/opened.json");

/// An issue of `org/repo`, as it is at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Issue(Value);

impl Issue {
    /// Open, with the label `agent/code`, last changed at second 0.
    pub(crate) fn new(number: i64) -> Self {
        let mut payload: Value = serde_json::from_str(OPENED).unwrap();
        payload["number"] = json!(number);
        payload["issue"]["number"] = json!(number);
        payload["repository"]["full_name"] = json!("org/repo");
        Self(payload).at(0)
    }

    /// The key of its task.
    pub(crate) fn key(&self) -> String {
        let repo = self.0["repository"]["full_name"].as_str().unwrap();
        format!("{repo}#{}", self.0["number"])
    }

    /// Last changed so many seconds after the first moment.
    pub(crate) fn at(mut self, second: i64) -> Self {
        let first: jiff::Timestamp = "2026-05-04T08:00:00Z".parse().unwrap();
        let at = first + jiff::SignedDuration::from_secs(second);
        self.0["issue"]["updated_at"] = json!(at.to_string());
        self
    }

    pub(crate) fn repo(mut self, full_name: &str) -> Self {
        self.0["repository"]["full_name"] = json!(full_name);
        self
    }

    pub(crate) fn title(mut self, title: &str) -> Self {
        self.0["issue"]["title"] = json!(title);
        self
    }

    pub(crate) fn body(mut self, body: &str) -> Self {
        self.0["issue"]["body"] = json!(body);
        self
    }

    pub(crate) fn labels(mut self, names: &[&str]) -> Self {
        let labels: Vec<Value> = names.iter().map(|name| json!({"id": 1, "name": name})).collect();
        self.0["issue"]["labels"] = json!(labels);
        self
    }

    pub(crate) fn open(mut self) -> Self {
        self.0["issue"]["state"] = json!("open");
        self.0["commit_id"] = json!("");
        self
    }

    /// By hand, or by a commit.
    pub(crate) fn closed(mut self, commit_id: Option<&str>) -> Self {
        self.0["issue"]["state"] = json!("closed");
        self.0["commit_id"] = json!(commit_id.unwrap_or_default());
        self
    }

    /// What the forge sends of it now, under an id of its own.
    pub(crate) fn delivery(&self, action: &str) -> Delivery {
        let mut payload = self.0.clone();
        payload["action"] = json!(action);
        let event = if action.starts_with("label_") { "issue_label" } else { "issues" };
        let body = serde_json::to_vec_pretty(&payload).unwrap();
        Delivery { id: Uuid::now_v7().to_string(), event: event.to_owned(), body }
    }

    /// Delivers it; the reply, which must be a 202.
    pub(crate) async fn send(&self, action: &str, node: &Node) -> Value {
        self.delivery(action).send(node).await
    }
}

/// One delivery.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    /// The fine event.
    pub(crate) event: String,
    pub(crate) body: Vec<u8>,
}

impl Delivery {
    /// The same bytes under a new id, as the Replay button sends them.
    pub(crate) fn replayed(&self) -> Self {
        Self { id: Uuid::now_v7().to_string(), ..self.clone() }
    }

    /// All headers but signatures.
    pub(crate) fn headers(&self) -> Vec<(&str, String)> {
        vec![
            ("content-type", "application/json".to_owned()),
            ("x-forgejo-delivery", self.id.clone()),
            ("x-forgejo-event", "issues".to_owned()),
            ("x-forgejo-event-type", self.event.clone()),
        ]
    }

    /// Sends it with these headers besides.
    pub(crate) async fn send_with(
        &self,
        node: &Node,
        more: &[(&str, &str)],
    ) -> (StatusCode, Value) {
        let mut headers = self.headers();
        for (name, value) in more {
            headers.retain(|(known, _)| known != name);
            headers.push((name, (*value).to_owned()));
        }
        post(&node.url, &headers, self.body.clone()).await
    }

    /// Sends it as it should be.
    pub(crate) async fn answer(&self, node: &Node) -> (StatusCode, Value) {
        let signature = sign(SECRET, &self.body);
        self.send_with(node, &[("x-forgejo-signature", &signature)]).await
    }

    /// The same; the reply, which must be a 202.
    pub(crate) async fn send(&self, node: &Node) -> Value {
        let (status, reply) = self.answer(node).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{reply}");
        assert_eq!(reply["delivery_id"], self.id);
        reply
    }
}

/// Hex HMAC-SHA256.
pub(crate) fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// POST to the webhook of a replica, with these headers and no others.
pub(crate) async fn post(
    url: &str,
    headers: &[(&str, String)],
    body: Vec<u8>,
) -> (StatusCode, Value) {
    let mut request =
        reqwest::Client::new().post(format!("{url}/api/v1/webhooks/forgejo")).body(body);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let reply = request.send().await.unwrap();
    let status = reply.status();
    (status, serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap_or(Value::Null))
}
