//! An agent of the load: registers, takes tasks, completes them, and does no work in between.

use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::http::{Address, Connection};

/// A registered agent.
#[derive(Debug)]
pub(super) struct Agent {
    agent_id: String,
    connection: Connection,
    receipt: String,
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

/// What `complete?dequeue=true` answers. A coordinator that does not know it answers with the task alone.
#[derive(Deserialize)]
struct Completed {
    task_id: Option<Uuid>,
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
        Ok(Self { agent_id, connection, receipt: String::new() })
    }

    /// Takes one task; `None` when there was none within `wait_secs`.
    pub(super) async fn dequeue(&mut self, wait_secs: u32) -> anyhow::Result<Option<Claim>> {
        let body = format!(r#"{{"agent_id":"{}","wait_secs":{wait_secs}}}"#, self.agent_id);
        let reply = self.connection.post("/api/v1/tasks/dequeue", body.as_bytes()).await?;
        if reply.status == 204 { Ok(None) } else { reply.expect(200).map(Some) }
    }

    /// Completes a task and takes the next one.
    pub(super) async fn cycle(&mut self, claim: &Claim) -> anyhow::Result<Option<Claim>> {
        let path = format!("/api/v1/tasks/{}/complete?dequeue=true", claim.task_id);
        self.write_receipt(claim);
        let reply = self.connection.post(&path, self.receipt.as_bytes()).await?;
        let completed: Completed = reply.expect(200)?;
        if completed.task_id.is_some() {
            return self.dequeue(0).await;
        }
        Ok(completed.next)
    }

    fn write_receipt(&mut self, claim: &Claim) {
        self.receipt = format!(
            r#"{{"agent_id":"{}","lease":{},"status":"completed","duration_seconds":1,"summary":"done","artifacts":[]}}"#,
            self.agent_id, claim.lease
        );
    }

    /// Leaves the fleet.
    pub(super) async fn deregister(&mut self) -> anyhow::Result<()> {
        let body = format!(r#"{{"agent_id":"{}"}}"#, self.agent_id);
        let reply = self.connection.post("/api/v1/agents/deregister", body.as_bytes()).await?;
        reply.expect::<serde::de::IgnoredAny>(200).map(drop)
    }
}
