//! What an issue's newest state means for its task, whatever the order in which the forge tells. Pure: the store reads the
//! task, asks [`decide`] in the same transaction, and carries the decision out.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CapabilitySet, Priority, Repo, Status};

/// The newest state of an issue, as it is kept while its task cannot take it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueState {
    /// One line.
    pub title: String,
    /// Markdown.
    pub body: String,
    /// All labels.
    pub labels: Vec<String>,
    /// What the labels require. `None` when that cannot be stored (more than 16): such a set makes no task, and a task
    /// keeps the set that it has.
    pub capabilities: Option<CapabilitySet>,
    /// From the labels; normal when they say nothing.
    pub priority: Priority,
    /// Where the issue is.
    pub repo: Repo,
    /// The issue's page.
    pub issue_url: Option<String>,
    /// False once closed.
    pub open: bool,
    /// By the forge's clock, to the second.
    pub updated_at: Timestamp,
    /// The commit that closed it. `None` unless closed.
    pub commit_id: Option<String>,
    /// The issue was opened again, and its task has not taken that over yet. The store keeps in which version that was
    /// said and sets this when it asks; otherwise the same word would restart the task for ever.
    pub reopened: bool,
    /// The account that acted last.
    pub sender: String,
}

/// What [`decide`] must know of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// Where it stands.
    pub status: Status,
    /// Somebody holds its lease, whatever the status: after a merge the holder may still owe its receipt.
    pub leased: bool,
    /// The stored requirements, sorted.
    pub capabilities: Vec<String>,
    /// Whether the issue was open in the state that was applied last.
    pub issue_open: bool,
    /// A pull request of it is known.
    pub has_pull_request: bool,
    /// As stored.
    pub title: String,
    /// As stored.
    pub body: String,
    /// As stored.
    pub labels: Vec<String>,
    /// As stored.
    pub priority: Priority,
}

/// A change of status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// → `cancelled`, as an operator's cancel: a holder learns it.
    Cancel,
    /// → `completed`; a lease that is held stays until the receipt.
    Complete,
    /// → `created`.
    Reopen,
}

/// What to do. After all but [`Decision::Later`] the state counts as applied: its `open` is the next `issue_open`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Make the task.
    Create,
    /// Leave all as it is; says why.
    Nothing(&'static str),
    /// Keep the state, and decide again when the lease ends.
    Later,
    /// Write to the task.
    Apply {
        /// Take over title, body, labels, priority and requirements.
        update: bool,
        /// Then change the status.
        then: Option<Change>,
    },
}

/// Decides what a state of an issue that has not been applied yet does to its task.
pub fn decide(task: Option<&TaskView>, issue: &IssueState) -> Decision {
    match task {
        None => decide_new(issue),
        Some(task) => decide_known(task, issue),
    }
}

fn decide_new(issue: &IssueState) -> Decision {
    match &issue.capabilities {
        None => Decision::Nothing("more requirement labels than a task may have"),
        Some(set) if set.is_empty() => Decision::Nothing("no requirement label"),
        Some(_) if !issue.open => Decision::Nothing("the issue is closed"),
        Some(_) => Decision::Create,
    }
}

fn decide_known(task: &TaskView, issue: &IssueState) -> Decision {
    let update = issue.capabilities.as_ref().is_some_and(|set| differs(task, issue, set));
    match change(task, issue) {
        // A holder keeps working for nothing, or for what is already done: this does not wait. The text goes along; a
        // claim names the version of it that it handed out.
        Some(change @ (Change::Cancel | Change::Complete)) => {
            Decision::Apply { update, then: Some(change) }
        }
        Some(Change::Reopen) if task.leased => Decision::Later,
        None if update && task.leased => Decision::Later,
        Some(Change::Reopen) => Decision::Apply { update, then: Some(Change::Reopen) },
        None if update => Decision::Apply { update, then: None },
        None if issue.capabilities.is_none() => {
            Decision::Nothing("more requirement labels than a task may have")
        }
        None if task.issue_open && !issue.open => {
            Decision::Nothing("the pull request decides, or the task is finished")
        }
        None => Decision::Nothing("nothing changed for the task"),
    }
}

/// The change of status, regardless of whether it must wait for a holder.
fn change(task: &TaskView, issue: &IssueState) -> Option<Change> {
    let terminal = task.status.is_terminal();
    // An unusable set neither takes a requirement away nor adds one.
    let lost_all = issue.capabilities.as_ref().is_some_and(CapabilitySet::is_empty)
        && !task.capabilities.is_empty();
    if !issue.open {
        // Merging "Closes #42" closes issue and pull request in either order: the pull request's event decides.
        let unexplained = !task.has_pull_request && task.status != Status::ReviewPending;
        if unexplained && issue.commit_id.is_some() {
            return (task.status != Status::Completed).then_some(Change::Complete);
        }
        if unexplained && task.issue_open && !terminal {
            return Some(Change::Cancel);
        }
    }
    if lost_all && !terminal {
        return Some(Change::Cancel);
    }
    let wanted = issue.open && issue.capabilities.as_ref().is_some_and(|set| !set.is_empty());
    let again = issue.reopened || !task.issue_open || task.capabilities.is_empty();
    (terminal && wanted && again).then_some(Change::Reopen)
}

fn differs(task: &TaskView, issue: &IssueState, set: &CapabilitySet) -> bool {
    // The order of labels means nothing.
    let sorted = |labels: &[String]| {
        let mut labels = labels.to_vec();
        labels.sort_unstable();
        labels
    };
    task.title != issue.title
        || task.body != issue.body
        || task.priority != issue.priority
        || task.capabilities != set.as_slice()
        || sorted(&task.labels) != sorted(&issue.labels)
}

#[cfg(test)]
mod tests;
