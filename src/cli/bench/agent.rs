//! An agent of the load: registers, takes tasks, completes them, and does no work in between.

use anyhow::ensure;
use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};
use serde_json::{Value, json};
use uuid::Uuid;

use super::http::{Address, Connection};

/// How long a poll of an idle agent waits, in seconds: the most that a coordinator allows.
pub(super) const POLL: u32 = 50;

/// A registered agent.
#[derive(Debug)]
pub(super) struct Agent {
    agent_id: String,
    connection: Connection,
}

/// A task that it holds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Claim {
    pub(super) task_id: Uuid,
    pub(super) lease: i64,
}

#[derive(Deserialize)]
struct Registered {
    registry_token: String,
}

/// Several claims.
#[derive(Deserialize)]
struct Claims {
    tasks: Vec<Claim>,
}

/// What an array of receipts answers.
#[derive(Deserialize)]
struct Results {
    results: Vec<Value>,
}

/// What `complete?dequeue=true` answers.
#[derive(Deserialize)]
struct Completed {
    next: Option<Claim>,
}

impl Agent {
    /// Registers over a connection of its own. `token` may register agents.
    pub(super) async fn register(
        address: &Address,
        token: Option<&str>,
        agent_id: String,
        capability: &str,
        max_concurrency: usize,
    ) -> anyhow::Result<Self> {
        let mut connection = Connection::open(address, token).await?;
        let body = json!({
            "agent_id": agent_id, "agent_type": "bench", "hostname": "bench", "capabilities": [capability],
            "max_concurrency": max_concurrency,
        });
        let reply = connection.post("/api/v1/agents/register", body.to_string().as_bytes()).await?;
        let registered: Registered = reply.expect(200)?;
        connection.authorize(registered.registry_token);
        Ok(Self { agent_id, connection })
    }

    /// Takes one task; `None` when there was none within `wait_secs`.
    pub(super) async fn dequeue<T: DeserializeOwned>(
        &mut self,
        wait_secs: u32,
    ) -> anyhow::Result<Option<T>> {
        let body = format!(r#"{{"agent_id":"{}","wait_secs":{wait_secs}}}"#, self.agent_id);
        let reply = self.connection.post("/api/v1/tasks/dequeue", body.as_bytes()).await?;
        if reply.status == 204 { Ok(None) } else { reply.expect(200).map(Some) }
    }

    /// Takes up to `most` tasks; none when there were none within a second.
    pub(super) async fn dequeue_many(&mut self, most: usize) -> anyhow::Result<Vec<Claim>> {
        let body =
            format!(r#"{{"agent_id":"{}","wait_secs":1,"max_tasks":{most}}}"#, self.agent_id);
        let reply = self.connection.post("/api/v1/tasks/dequeue", body.as_bytes()).await?;
        if reply.status == 204 {
            return Ok(Vec::new());
        }
        reply.expect::<Claims>(200).map(|claims| claims.tasks)
    }

    /// Completes a task.
    pub(super) async fn complete(&mut self, claim: &Claim) -> anyhow::Result<()> {
        let path = format!("/api/v1/tasks/{}/complete", claim.task_id);
        let body = self.receipt(claim).to_string();
        self.connection.post(&path, body.as_bytes()).await?.expect::<IgnoredAny>(200).map(drop)
    }

    /// Completes tasks in one call.
    pub(super) async fn complete_many(&mut self, claims: &[Claim]) -> anyhow::Result<()> {
        if claims.is_empty() {
            return Ok(());
        }
        let receipts = claims.iter().map(|claim| {
            let mut receipt = self.receipt(claim);
            receipt["task_id"] = json!(claim.task_id);
            receipt
        });
        let body = Value::Array(receipts.collect()).to_string();
        let reply = self.connection.post("/api/v1/receipts", body.as_bytes()).await?;
        let results = reply.expect::<Results>(200)?.results;
        let refused = results.iter().find(|result| !result["error"].is_null());
        ensure!(refused.is_none(), "a receipt was refused: {refused:?}");
        ensure!(
            results.len() == claims.len(),
            "{} receipts were judged of {}",
            results.len(),
            claims.len()
        );
        Ok(())
    }

    /// Completes a task and takes the next one.
    pub(super) async fn cycle(&mut self, claim: &Claim) -> anyhow::Result<Option<Claim>> {
        let path = format!("/api/v1/tasks/{}/complete?dequeue=true", claim.task_id);
        let body = self.receipt(claim).to_string();
        let reply = self.connection.post(&path, body.as_bytes()).await?;
        reply.expect::<Completed>(200).map(|completed| completed.next)
    }

    fn receipt(&self, claim: &Claim) -> Value {
        json!({
            "agent_id": self.agent_id, "lease": claim.lease, "status": "completed", "duration_seconds": 1,
            "summary": "done", "artifacts": [],
        })
    }

    /// A poll as it goes over the wire, for who does not want its answer.
    pub(super) fn poll_request(&self) -> Vec<u8> {
        let body = format!(r#"{{"agent_id":"{}","wait_secs":{POLL}}}"#, self.agent_id);
        self.connection.request("POST", "/api/v1/tasks/dequeue", &[], body.as_bytes())
    }

    /// Connects anew, after a call whose answer nobody waits for any more.
    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.connection.reconnect().await
    }

    /// Leaves the fleet.
    pub(super) async fn deregister(&mut self) -> anyhow::Result<()> {
        let body = format!(r#"{{"agent_id":"{}"}}"#, self.agent_id);
        let reply = self.connection.post("/api/v1/agents/deregister", body.as_bytes()).await?;
        reply.expect::<IgnoredAny>(200).map(drop)
    }
}
