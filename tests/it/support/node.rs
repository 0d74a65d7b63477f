//! A replica in this process, with its API on a loopback port.

use std::{sync::Arc, time::Duration};

use agent_fleet::{
    api,
    config::{Config, Overrides},
    coordinator::{MakeExecutor, Replica, make_executor},
    execution,
    shutdown::Shutdown,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::db::Db;

/// What every replica of a test has unless the test says otherwise: open mode, quick loops, no phase 2.
const DEFAULTS: &str = r#"
[auth]
mode = "open"
[dispatch]
interval = "1s"
undecided_grace = "1h"
[tasks]
retry_backoff = "50ms"
[forgejo]
webhook_secret = "webhook-secret"
"#;

/// Reads a configuration as `serve` does; what is given in full tables replaces the defaults of those tables.
pub(crate) fn config(toml: &str) -> Config {
    let mut text = String::new();
    let own: Vec<&str> = toml.lines().filter(|l| l.starts_with('[')).map(str::trim).collect();
    let mut keep = true;
    for line in DEFAULTS.lines() {
        if line.starts_with('[') {
            keep = !own.contains(&line.trim());
        }
        if keep {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push_str(toml);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent-fleet.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), |_| None, &Overrides::default(), execution::built_in()).unwrap()
}

/// A running replica.
pub(crate) struct Node {
    pub(crate) replica: Arc<Replica>,
    /// `http://127.0.0.1:<port>`
    pub(crate) url: String,
    http: reqwest::Client,
    serving: JoinHandle<()>,
}

impl Node {
    /// Starts a replica on a test's database.
    pub(crate) async fn start(db: &Db, replica_id: &str, toml: &str) -> Self {
        Self::start_with(db, replica_id, toml, &make_executor).await
    }

    /// The same with executors of the test's own.
    pub(crate) async fn start_with(
        db: &Db,
        replica_id: &str,
        toml: &str,
        make_executor: &MakeExecutor,
    ) -> Self {
        agent_fleet::tls::install_provider();
        let mut config = config(toml);
        config.database.url = Some(agent_fleet::config::Secret::new(db.url()));
        config.server.replica_id = replica_id.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let replica = Replica::start(config, false, make_executor, Shutdown::new()).await.unwrap();
        let serving =
            tokio::spawn(api::serve(Arc::clone(&replica), listener, Duration::from_secs(5)));
        Self { replica, url, http: reqwest::Client::new(), serving }
    }

    /// A request; the reply's status and its body as JSON (null when it is empty or none).
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let reply = request.send().await.unwrap();
        let status = reply.status();
        let bytes = reply.bytes().await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// GET without a token.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, None, None).await
    }

    /// POST without a token.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, None, Some(&body)).await
    }

    /// POST that must be answered with 200 or 201.
    pub(crate) async fn must(&self, path: &str, body: Value) -> Value {
        let (status, reply) = self.post(path, body.clone()).await;
        assert!(status.is_success(), "POST {path} {body}: {status} {reply}");
        reply
    }

    /// Creates a task with these labels; its id.
    pub(crate) async fn create(&self, title: &str, labels: &[&str]) -> String {
        let task = self.must("/api/v1/tasks", json!({"title": title, "labels": labels})).await;
        task["task_id"].as_str().unwrap().to_owned()
    }

    /// Registers an agent; its token.
    pub(crate) async fn register(
        &self,
        agent_id: &str,
        capabilities: &[&str],
        slots: u32,
    ) -> String {
        let reply = self
            .must(
                "/api/v1/agents/register",
                json!({"agent_id": agent_id, "agent_type": "test", "hostname": "here",
                       "capabilities": capabilities, "max_concurrency": slots}),
            )
            .await;
        reply["registry_token"].as_str().unwrap().to_owned()
    }

    /// Waits until a poll waits here.
    pub(crate) async fn until_polled(&self) {
        super::eventually("a poll waits", async || {
            (self.replica.matchmaker.waiting() > 0).then_some(())
        })
        .await;
    }

    /// One dequeue; the task, or none.
    pub(crate) async fn dequeue(&self, agent_id: &str, wait_secs: u32) -> Option<Value> {
        let (status, task) = self
            .post("/api/v1/tasks/dequeue", json!({"agent_id": agent_id, "wait_secs": wait_secs}))
            .await;
        match status {
            StatusCode::OK => Some(task),
            StatusCode::NO_CONTENT => None,
            other => panic!("dequeue for {agent_id}: {other} {task}"),
        }
    }

    /// A task as it is.
    pub(crate) async fn task(&self, id: &str) -> Value {
        let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
        let (status, task) = self.get(&format!("/api/v1/tasks/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{task}");
        task
    }

    /// Waits until a task has this status.
    pub(crate) async fn until(&self, id: &str, status: &str) -> Value {
        let mut last = Value::Null;
        let seen = super::wait::in_time(async || {
            last = self.task(id).await;
            (last["status"] == status).then(|| last.take())
        })
        .await;
        seen.unwrap_or_else(|| panic!("waited 30 s in vain until this is {status}: {last:#}"))
    }

    /// Waits until a host has this status.
    pub(crate) async fn until_host(&self, host_id: &str, status: &str) -> Value {
        super::eventually(&format!("host {host_id} is {status}"), async || {
            let (_, hosts) = self.get("/api/v1/hosts").await;
            let hosts = hosts["items"].as_array()?.clone();
            hosts.into_iter().find(|h| h["host_id"] == host_id && h["status"] == status)
        })
        .await
    }

    /// Sends a completed receipt for a task as dequeued.
    pub(crate) async fn complete(&self, task: &Value, agent_id: &str) -> (StatusCode, Value) {
        let id = task["task_id"].as_str().unwrap();
        self.post(
            &format!("/api/v1/tasks/{id}/complete"),
            json!({"agent_id": agent_id, "lease": task["lease"], "status": "completed",
                   "duration_seconds": 1, "summary": "done", "artifacts": []}),
        )
        .await
    }

    /// Stops it in good order.
    pub(crate) async fn stop(self) {
        self.replica.stop(Duration::from_secs(10)).await;
        self.serving.await.unwrap();
    }
}
