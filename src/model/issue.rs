//! What an issue of the forge makes of its task: one pure decision, whatever the order in which the forge tells.

use serde::{Deserialize, Serialize};

use super::{Priority, Repo, Status};

/// An issue as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueState {
    /// One line.
    pub title: String,
    /// Markdown.
    pub body: String,
    /// All labels.
    pub labels: Vec<String>,
    /// The labels that are requirements, sorted; at most 16.
    pub capabilities: Vec<String>,
    /// From the labels, else normal.
    pub priority: Priority,
    /// Where it is.
    pub repo: Repo,
    /// Its page.
    pub issue_url: Option<String>,
    /// Open or closed.
    pub open: bool,
    /// The commit that closed it, if one did.
    pub commit_id: Option<String>,
    /// The account that acted last.
    pub sender: String,
}

/// The issue's task as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// Where it stands.
    pub status: Status,
    /// Somebody has its lease.
    pub leased: bool,
    /// Whether the state of the issue that was applied last was open.
    pub issue_open: bool,
    /// A pull request is known.
    pub has_pull_request: bool,
    /// Stored title.
    pub title: String,
    /// Stored text.
    pub body: String,
    /// Stored labels.
    pub labels: Vec<String>,
    /// Stored requirements.
    pub capabilities: Vec<String>,
    /// Stored priority.
    pub priority: Priority,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The issue becomes a task.
    Create,
    /// There is no task and there shall be none.
    Nothing,
    /// The task is leased: keep the state for when it is free.
    Later,
    /// The state is taken over.
    Apply {
        /// Title, text, labels, requirements or priority have changed.
        update: bool,
        /// The transition to make, after that.
        then: Option<Change>,
    },
}

/// A transition that an issue asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Closed without a commit, or its last requirement was removed.
    Cancel,
    /// Closed by a commit.
    Complete,
    /// Reopened, or a requirement was put where there was none.
    Reopen,
}

/// Decides. `reopened`: the forge said so since the state that was applied last, so that a lost `closed` does no harm.
pub fn decide(task: Option<&TaskView>, issue: &IssueState, reopened: bool) -> Decision {
    let Some(task) = task else {
        return if issue.open && !issue.capabilities.is_empty() {
            Decision::Create
        } else {
            Decision::Nothing
        };
    };
    let update = task.title != issue.title
        || task.body != issue.body
        || task.labels != issue.labels
        || task.capabilities != issue.capabilities
        || task.priority != issue.priority;
    let then = change(task, issue, reopened);
    let waits = match then {
        // A holder's work is called off at once, as an operator would; its money is being spent.
        Some(Change::Cancel | Change::Complete) => false,
        Some(Change::Reopen) => task.leased,
        None => task.leased && update,
    };
    if waits { Decision::Later } else { Decision::Apply { update, then } }
}

fn change(task: &TaskView, issue: &IssueState, reopened: bool) -> Option<Change> {
    if !issue.open {
        // A pull request explains the closing: its own event decides.
        let explained = task.has_pull_request || task.status == Status::ReviewPending;
        if explained || !task.issue_open {
            return None;
        }
        return if issue.commit_id.is_some() {
            (task.status != Status::Completed).then_some(Change::Complete)
        } else {
            (!task.status.is_terminal()).then_some(Change::Cancel)
        };
    }
    if issue.capabilities.is_empty() {
        let lost_its_last = !task.capabilities.is_empty();
        return (lost_its_last && !task.status.is_terminal()).then_some(Change::Cancel);
    }
    // No other edit restarts finished work: our own labels fire hooks too.
    let wanted_again = reopened || !task.issue_open || task.capabilities.is_empty();
    (wanted_again && task.status.is_terminal()).then_some(Change::Reopen)
}
