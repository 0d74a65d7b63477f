//! Who does the work: agents that pull, hosts that are pushed to.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{AgentId, task::words};

words! {
    /// Whether an agent can take work.
    AgentStatus {
        /// Its session lives.
        Online = "online",
        /// Finishes what it has, takes nothing new.
        Draining = "draining",
        /// No live session.
        Offline = "offline",
    }
}

/// An agent as the API answers it.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "the fields are docs/api.md's, where each is explained")]
pub struct Agent {
    pub agent_id: AgentId,
    pub agent_type: String,
    pub hostname: String,
    pub capabilities: Vec<String>,
    pub max_concurrency: i32,
    pub metadata: serde_json::Value,
    pub status: AgentStatus,
    pub leased: i64,
    pub last_heartbeat_at: Option<Timestamp>,
    pub registered_at: Timestamp,
}

words! {
    /// Whether a host can be dispatched to.
    HostStatus {
        /// Some live replica reaches it.
        Online = "online",
        /// Finishes what it has, takes nothing new.
        Draining = "draining",
        /// No live replica reaches it; the reason says why.
        Offline = "offline",
        /// No live replica lists it.
        Disabled = "disabled",
    }
}

/// One CLI on one host: what slots are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostAgentId(pub i64);

/// One CLI on one host as the API answers it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are docs/api.md's, where each is explained")]
pub struct HostAgent {
    pub agent_type: String,
    pub capabilities: Vec<String>,
    pub max_concurrency: i32,
    pub running: i64,
    pub parked_until: Option<Timestamp>,
    pub parked_reason: Option<String>,
}

/// What one live replica's newest probe of a host found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are docs/api.md's, where each is explained")]
pub struct HostCheck {
    pub replica_id: String,
    pub online: bool,
    pub reason: Option<String>,
    pub checked_at: Option<Timestamp>,
}

/// A host as the API answers it.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "the fields are docs/api.md's, where each is explained")]
pub struct Host {
    pub host_id: String,
    pub hostname: String,
    pub status: HostStatus,
    pub reason: Option<String>,
    pub agents: Vec<HostAgent>,
    pub checked_at: Option<Timestamp>,
    pub replicas: Vec<HostCheck>,
}
