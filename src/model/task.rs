//! A task as docs/api.md shows it, and the words its columns hold.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::{Lease, TaskId, Traceparent, Usage};

/// A word that is none of the known ones.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is not one of: {known}")]
pub struct UnknownWord {
    /// What was given.
    pub given: String,
    /// The words that are known, separated by commas.
    pub known: String,
}

/// An enum whose variants are words, the same in Rust, JSON and SQL.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Every word, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word as JSON and SQL spell it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::model::UnknownWord;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::model::UnknownWord {
                        given: text.to_owned(),
                        known: [$($word,)+].join(", "),
                    }),
                }
            }
        }
    };
}
pub(crate) use words;

words! {
    /// How a task is executed: a decision of the dispatcher or of the first dequeue, unless the creator made it.
    #[derive(Default)]
    ExecutionMode {
        /// Not decided yet; dispatch and dequeue race for it.
        #[default]
        Undecided = "undecided",
        /// Pushed to a host over SSH.
        SshCli = "ssh_cli",
        /// Pulled by an agent over HTTP.
        HttpPull = "http_pull",
    }
}

words! {
    /// Where a task stands.
    Status {
        /// Waits for its time.
        Scheduled = "scheduled",
        /// Waits to be claimed.
        Created = "created",
        /// Claimed, or pinned and not yet claimed.
        Assigned = "assigned",
        /// At work.
        Running = "running",
        /// A pull request waits for its review.
        ReviewPending = "review_pending",
        /// Done.
        Completed = "completed",
        /// Ended without success.
        Failed = "failed",
        /// Its holders fell silent too often.
        AgentLost = "agent_lost",
        /// Called off.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// True when nothing more happens by itself.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::AgentLost | Self::Cancelled)
    }
}

words! {
    /// Which task goes first. Higher first, then older first.
    #[derive(Default)]
    Priority {
        /// After all others.
        Low = "low",
        /// The default.
        #[default]
        Normal = "normal",
        /// Before normal ones.
        High = "high",
        /// Before all others.
        Urgent = "urgent",
    }
}

impl Priority {
    /// The number that the database orders by.
    pub const fn rank(self) -> i16 {
        match self {
            Self::Low => 0,
            Self::Normal => 1,
            Self::High => 2,
            Self::Urgent => 3,
        }
    }

    /// The priority of a stored rank; what is out of range counts as the nearest.
    pub const fn from_rank(rank: i16) -> Self {
        match rank {
            i16::MIN..=0 => Self::Low,
            1 => Self::Normal,
            2 => Self::High,
            3..=i16::MAX => Self::Urgent,
        }
    }
}

words! {
    /// Where a task came from.
    Source {
        /// `POST /api/v1/tasks`.
        Api = "api",
        /// `agent-fleet task submit`.
        Cli = "cli",
        /// Plain SQL.
        Sql = "sql",
        /// An issue of a Forgejo.
        Forgejo = "forgejo",
    }
}

/// The repository that a task is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// `org/repo`.
    pub full_name: String,
    /// HTTPS clone address.
    #[serde(default)]
    pub clone_url: Option<String>,
    /// SSH clone address.
    #[serde(default)]
    pub ssh_url: Option<String>,
    /// The branch that work starts from.
    #[serde(default)]
    pub default_branch: Option<String>,
}

/// What later attempts must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When it was written.
    pub at: Timestamp,
    /// Who wrote it.
    pub from: String,
    /// What it says.
    pub text: String,
}

/// A task as the API answers it. Column names of `fleet.tasks` are the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are docs/api.md's, where each is explained")]
pub struct Task {
    pub task_id: TaskId,
    pub key: String,
    pub source: Source,
    pub title: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body: Option<String>,
    pub labels: Vec<String>,
    pub capabilities: Vec<String>,
    pub task_type: Option<String>,
    pub priority: Priority,
    pub status: Status,
    #[serde(default)]
    pub execution_mode: ExecutionMode,
    pub repo: Option<Repo>,
    pub issue_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prompt: Option<String>,
    pub pinned_to: Option<String>,
    pub assigned_agent_id: Option<String>,
    pub assigned_host: Option<String>,
    pub lease: Lease,
    pub lease_expires_at: Option<Timestamp>,
    pub deadline_at: Option<Timestamp>,
    pub attempt: i32,
    pub max_retries: i32,
    pub retry_count: i32,
    pub review_count: i32,
    pub timeout_secs: i32,
    pub run_at: Option<Timestamp>,
    pub branch_name: String,
    pub pr_url: Option<String>,
    pub pr_title: Option<String>,
    pub waiting_reason: Option<String>,
    pub error: Option<String>,
    pub summary: Option<String>,
    pub usage: Option<Usage>,
    pub notes: Vec<Note>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traceparent: Option<Traceparent>,
    pub created_at: Timestamp,
    pub assigned_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub last_activity_at: Option<Timestamp>,
}

impl Task {
    /// The first requirement without its prefix.
    pub fn task_type_of(capabilities: &[String]) -> Option<String> {
        capabilities.first().map(|c| c.split_once(':').map_or(c.as_str(), |(_, t)| t).to_owned())
    }
}

/// What git refuses or treats specially in a ref, on top of what a URL path needs.
const REF: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// The branch that an agent works on: `task/` and the key, percent-encoded so that it is one valid git ref component
/// (git-check-ref-format(1)).
pub fn branch_name(key: &str) -> String {
    let mut name = utf8_percent_encode(key, REF).to_string();
    // The dots that git refuses: leading, doubled, trailing, and the suffix `.lock`.
    while name.contains("..") {
        name = name.replace("..", ".%2E");
    }
    if let Some(rest) = name.strip_prefix('.') {
        name = format!("%2E{rest}");
    }
    if let Some(rest) = name.strip_suffix(".lock") {
        name = format!("{rest}%2Elock");
    }
    if let Some(rest) = name.strip_suffix('.') {
        name = format!("{rest}%2E");
    }
    format!("task/{name}")
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full_name)
    }
}

impl FromStr for Repo {
    type Err = std::convert::Infallible;
    fn from_str(full_name: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            full_name: full_name.to_owned(),
            clone_url: None,
            ssh_url: None,
            default_branch: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undecided_is_the_default_and_its_word_is_its_word() {
        assert_eq!(ExecutionMode::default(), ExecutionMode::Undecided);
        assert_eq!(serde_json::to_string(&ExecutionMode::Undecided).unwrap(), "\"undecided\"");
        let back: ExecutionMode = serde_json::from_str("\"undecided\"").unwrap();
        assert_eq!(back, ExecutionMode::Undecided);
    }

    #[test]
    fn every_word_round_trips() {
        for mode in ExecutionMode::ALL {
            assert_eq!(mode.as_str().parse::<ExecutionMode>().unwrap(), *mode);
            assert_eq!(serde_json::to_string(mode).unwrap(), format!("\"{mode}\""));
        }
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>().unwrap(), *status);
        }
        for priority in Priority::ALL {
            assert_eq!(Priority::from_rank(priority.rank()), *priority);
        }
        assert!("Undecided".parse::<ExecutionMode>().is_err());
    }

    #[test]
    fn branch_names_are_refs() {
        assert_eq!(branch_name("org/repo#42"), "task/org%2Frepo%2342");
        assert_eq!(branch_name("a..b.lock"), "task/a.%2Eb%2Elock");
        assert_eq!(branch_name(".x."), "task/%2Ex%2E");
        assert_eq!(branch_name("a~^:?*[\\ b"), "task/a%7E%5E%3A%3F%2A%5B%5C%20b");
    }
}
