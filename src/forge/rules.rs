//! Who is heard, and what an event says about its issue. What that means for a task is [`crate::model::decide`].

use super::payload::{IssueAction, IssueEvent};
use crate::model::{CapabilitySet, IssueState, priority_from_labels};

/// True when `forgejo.repos` lets this repository be heard: no list, its exact name, or `owner/*`. The forge ignores case
/// in names, so this does too.
pub fn is_heard(repos: &[String], full_name: &str) -> bool {
    repos.is_empty()
        || repos.iter().any(|pattern| match pattern.strip_suffix("/*") {
            Some(owner) => full_name
                .split_once('/')
                .is_some_and(|(given, _)| given.eq_ignore_ascii_case(owner)),
            None => pattern.eq_ignore_ascii_case(full_name),
        })
}

impl From<IssueEvent> for IssueState {
    fn from(event: IssueEvent) -> Self {
        Self {
            capabilities: CapabilitySet::required(&event.labels).ok(),
            priority: priority_from_labels(event.labels.iter().map(String::as_str))
                .unwrap_or_default(),
            reopened: event.open && event.action == IssueAction::Reopened,
            // A commit can also open an issue again.
            commit_id: event.commit_id.filter(|_| !event.open),
            title: event.title,
            body: event.body,
            labels: event.labels,
            repo: event.repo,
            issue_url: event.html_url,
            open: event.open,
            updated_at: event.updated_at,
            sender: event.sender,
        }
    }
}

#[cfg(test)]
mod tests;
