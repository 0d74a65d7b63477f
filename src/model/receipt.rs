//! What an attempt produced.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Lease, task::words};

words! {
    /// How the attempt ended, in the agent's words.
    ReceiptStatus {
        /// Done.
        Completed = "completed",
        /// Not done.
        Failed = "failed",
        /// Part of it is done and on record; counts as failed for retries.
        Partial = "partial",
    }
}

/// Something that the attempt left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are their own explanation")]
pub enum Artifact {
    /// A pull request; completes the task into `review_pending`.
    Pr { url: String },
    /// Any other address.
    Url { url: String },
    /// A file, relative to the task's folder.
    File { path: String },
    /// A commit.
    Commit { sha: String },
}

/// What the attempt cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens in.
    #[serde(default)]
    pub input_tokens: Option<i64>,
    /// Tokens out.
    #[serde(default)]
    pub output_tokens: Option<i64>,
    /// US dollars, as the CLI reported them.
    #[serde(default)]
    pub cost_usd: Option<f64>,
}

/// A receipt, without the fields that address it (agent, task, lease).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// How the attempt ended.
    pub status: ReceiptStatus,
    /// Wall-clock seconds of work.
    #[serde(default)]
    pub duration_seconds: Option<f64>,
    /// What was done, for a person.
    #[serde(default)]
    pub summary: Option<String>,
    /// What was left behind.
    #[serde(default)]
    pub artifacts: Vec<Artifact>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// What it cost.
    #[serde(default)]
    pub usage: Option<Usage>,
}

impl Receipt {
    /// The pull request that the attempt opened, if any.
    pub fn pull_request(&self) -> Option<&str> {
        self.artifacts.iter().find_map(|a| match a {
            Artifact::Pr { url } => Some(url.as_str()),
            _ => None,
        })
    }
}

/// A receipt as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredReceipt {
    /// The lease under which it was sent.
    pub lease: Lease,
    /// The agent, or `host_id/agent_type`.
    pub agent_id: String,
    /// When it was stored.
    pub received_at: Timestamp,
    /// As sent.
    #[serde(flatten)]
    pub receipt: Receipt,
}
