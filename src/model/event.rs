//! The event log: one row for every transition.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{TaskId, task::words};

words! {
    /// What happened to a task. Also the trigger of a transition.
    EventType {
        /// It came to be.
        Created = "created",
        /// Its title, text, labels or priority changed; no transition.
        Updated = "updated",
        /// Phase 2 made it `http_pull`; no transition.
        Decided = "decided",
        /// Its time came.
        Due = "due",
        /// A dequeue or the dispatcher took it.
        Claimed = "claimed",
        /// Another replica follows its run on, under a higher lease; no transition.
        TakenOver = "taken_over",
        /// Its agent registered anew and works on; no transition.
        Resumed = "resumed",
        /// An operator reserved it for an agent or host.
        Pinned = "pinned",
        /// The reservation ran out.
        PinExpired = "pin_expired",
        /// Work began.
        Started = "started",
        /// The holder said how it is getting on; no transition.
        Progress = "progress",
        /// Completed by a receipt, or by the forge.
        Completed = "completed",
        /// A pull request waits for review.
        ReviewPending = "review_pending",
        /// A receipt said failed.
        Failed = "failed",
        /// The deadline passed.
        TimedOut = "timed_out",
        /// The holder fell silent or is gone.
        Lost = "lost",
        /// Given back, the attempt refunded.
        Released = "released",
        /// The claim never reached its caller.
        Undone = "undone",
        /// The lease ended while the status stayed; no transition.
        LeaseEnded = "lease_ended",
        /// Called off.
        Cancelled = "cancelled",
        /// An operator wants it run again.
        Retried = "retried",
        /// The forge wants it run again.
        Reopened = "reopened",
    }
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// An agent, by id.
    Agent(String),
    /// A replica, by id.
    Replica(String),
    /// A CLI on a host, as `host_id/agent_type`.
    Host(String),
    /// A person or program with the admin, operator or open credential.
    Operator(&'static str),
    /// The forge, by the name of the account that acted.
    Forge(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(id) => write!(f, "agent:{id}"),
            Self::Replica(id) => write!(f, "replica:{id}"),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Operator(role) => write!(f, "operator:{role}"),
            Self::Forge(login) => write!(f, "forgejo:{login}"),
        }
    }
}

/// A row of the event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are docs/api.md's, where each is explained")]
pub struct Event {
    pub event_id: i64,
    pub task_id: TaskId,
    pub at: Timestamp,
    #[serde(rename = "type")]
    pub event_type: EventType,
    pub from_status: Option<String>,
    pub to_status: Option<String>,
    pub actor: String,
    pub lease: i64,
    pub attempt: i32,
    pub detail: serde_json::Value,
}
