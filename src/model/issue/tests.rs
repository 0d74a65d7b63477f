//! The rules, first as a table to read, then over every state there is.

use proptest::prelude::*;

use super::*;
use crate::model::priority_from_labels;

fn issue(labels: &[&str]) -> IssueState {
    IssueState {
        title: "t".into(),
        body: "b".into(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
        capabilities: CapabilitySet::required(labels).ok(),
        priority: priority_from_labels(labels.iter().copied()).unwrap_or_default(),
        repo: "org/repo".parse().unwrap(),
        issue_url: None,
        open: true,
        updated_at: Timestamp::UNIX_EPOCH,
        commit_id: None,
        reopened: false,
        sender: "ada".into(),
    }
}

/// A task that has taken over `issue(labels)`.
fn task(status: Status, labels: &[&str]) -> TaskView {
    let issue = issue(labels);
    TaskView {
        status,
        leased: false,
        capabilities: issue.capabilities.unwrap().as_slice().to_vec(),
        issue_open: true,
        has_pull_request: false,
        title: issue.title,
        body: issue.body,
        labels: issue.labels,
        priority: issue.priority,
    }
}

const CODE: &[&str] = &["agent:code"];
const CANCEL: Decision = Decision::Apply { update: false, then: Some(Change::Cancel) };
const COMPLETE: Decision = Decision::Apply { update: false, then: Some(Change::Complete) };
const REOPEN: Decision = Decision::Apply { update: false, then: Some(Change::Reopen) };
const UPDATE: Decision = Decision::Apply { update: true, then: None };

fn nothing(decision: Decision) -> bool {
    matches!(decision, Decision::Nothing(_))
}

fn closed(labels: &[&str], commit: Option<&str>) -> IssueState {
    IssueState { open: false, commit_id: commit.map(str::to_owned), ..issue(labels) }
}

#[test]
fn an_open_issue_with_a_requirement_becomes_a_task() {
    assert_eq!(decide(None, &issue(&["agent/code", "bug"])), Decision::Create);
    assert!(nothing(decide(None, &issue(&["bug"]))));
    assert!(nothing(decide(None, &closed(CODE, None))));
    assert!(nothing(decide(None, &closed(CODE, Some("abc")))));
    let many: Vec<String> = (0..17).map(|i| format!("agent:{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(nothing(decide(None, &issue(&many))));
    // A task keeps the set that it has, and is still cancelled by closing.
    assert!(nothing(decide(Some(&task(Status::Created, CODE)), &issue(&many))));
    assert_eq!(decide(Some(&task(Status::Created, CODE)), &closed(&many, None)), CANCEL);
}

#[test]
fn content_waits_for_the_holder() {
    for changed in [
        IssueState { title: "new".into(), ..issue(CODE) },
        IssueState { body: "new".into(), ..issue(CODE) },
        issue(&["agent:code", "bug"]),
        issue(&["agent:code", "priority:high"]),
        issue(&["agent:code", "agent:gpu"]),
        issue(&["agent:web"]),
    ] {
        for status in [Status::Scheduled, Status::Created, Status::Assigned, Status::Completed] {
            let free = task(status, CODE);
            assert_eq!(decide(Some(&free), &changed), UPDATE, "{status} {changed:?}");
            let held = TaskView { leased: true, ..free };
            assert_eq!(decide(Some(&held), &changed), Decision::Later);
        }
    }
    let stored = task(Status::Created, &["agent:code", "bug"]);
    assert!(nothing(decide(Some(&stored), &issue(&["bug", "agent:code"]))));
}

#[test]
fn closing_cancels_unless_something_explains_it() {
    for status in Status::ALL.iter().copied() {
        for leased in [false, true] {
            let plain = TaskView { leased, ..task(status, CODE) };
            let known = TaskView { has_pull_request: true, ..plain.clone() };
            let by_hand = decide(Some(&plain), &closed(CODE, None));
            let by_commit = decide(Some(&plain), &closed(CODE, Some("abc")));
            match status {
                Status::ReviewPending => assert!(nothing(by_hand) && nothing(by_commit)),
                Status::Completed => assert!(nothing(by_hand) && nothing(by_commit)),
                Status::Failed | Status::AgentLost | Status::Cancelled => {
                    assert!(nothing(by_hand));
                    assert_eq!(by_commit, COMPLETE);
                }
                _ => assert_eq!((by_hand, by_commit), (CANCEL, COMPLETE), "{status}"),
            }
            for commit in [None, Some("abc")] {
                assert!(nothing(decide(Some(&known), &closed(CODE, commit))), "{status}");
            }
        }
    }
    // A commit that becomes known after the closing still completes.
    let cancelled = TaskView { issue_open: false, ..task(Status::Cancelled, CODE) };
    assert_eq!(decide(Some(&cancelled), &closed(CODE, Some("abc"))), COMPLETE);
    // An edit of an issue that is closed already cancels nothing.
    let retried = TaskView { issue_open: false, ..task(Status::Created, CODE) };
    assert!(nothing(decide(Some(&retried), &closed(CODE, None))));
    // What changed together with the closing goes along, also past a holder.
    let held = TaskView { leased: true, ..task(Status::Running, CODE) };
    let both = IssueState { title: "new".into(), ..closed(CODE, None) };
    let wanted = Decision::Apply { update: true, then: Some(Change::Cancel) };
    assert_eq!(decide(Some(&held), &both), wanted);
}

#[test]
fn losing_the_last_requirement_cancels() {
    let wanted = Decision::Apply { update: true, then: Some(Change::Cancel) };
    for status in Status::ALL.iter().copied() {
        for leased in [false, true] {
            let task = TaskView { leased, ..task(status, CODE) };
            let decision = decide(Some(&task), &issue(&["bug"]));
            match (status.is_terminal(), leased) {
                (false, _) => assert_eq!(decision, wanted, "{status}"),
                (true, false) => assert_eq!(decision, UPDATE),
                (true, true) => assert_eq!(decision, Decision::Later),
            }
        }
    }
    let empty = task(Status::Created, &["bug"]);
    assert!(nothing(decide(Some(&empty), &issue(&["bug"]))));
}

#[test]
fn only_reopening_or_a_first_requirement_brings_it_back() {
    let reopened = IssueState { reopened: true, ..issue(CODE) };
    let update_too = Decision::Apply { update: true, then: Some(Change::Reopen) };
    for status in Status::ALL.iter().copied().filter(|s| s.is_terminal()) {
        let done = task(status, CODE);
        assert!(nothing(decide(Some(&done), &issue(CODE))));
        assert_eq!(decide(Some(&done), &issue(&["agent:code", "done"])), UPDATE);
        assert_eq!(decide(Some(&done), &issue(&["agent:code", "agent:gpu"])), UPDATE);
        assert_eq!(decide(Some(&done), &reopened), REOPEN);
        let was_closed = TaskView { issue_open: false, ..done.clone() };
        assert_eq!(decide(Some(&was_closed), &issue(CODE)), REOPEN);
        assert_eq!(decide(Some(&task(status, &["bug"])), &issue(CODE)), update_too);
        // Nobody asks an agent: no requirement.
        let bare = IssueState { reopened: true, ..issue(&["bug"]) };
        assert!(nothing(decide(Some(&task(status, &["bug"])), &bare)));
        // A merge completes before the receipt has come.
        let held = TaskView { leased: true, ..was_closed };
        assert_eq!(decide(Some(&held), &reopened), Decision::Later);
    }
    for status in Status::ALL.iter().copied().filter(|s| !s.is_terminal()) {
        assert!(nothing(decide(Some(&task(status, CODE)), &reopened)), "{status}");
    }
}

fn any_labels() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(vec!["agent:code", "agent:gpu", "bug", "priority:high"], 0..=4)
}

prop_compose! {
    fn any_task()(
        status in proptest::sample::select(Status::ALL), labels in any_labels(), leased: bool,
        issue_open: bool, has_pull_request: bool,
    ) -> TaskView {
        TaskView { leased, issue_open, has_pull_request, ..task(status, &labels) }
    }
}

prop_compose! {
    fn any_issue()(
        labels in any_labels(), open: bool, reopened: bool, commit: bool, edited: bool, usable in 0..10,
    ) -> IssueState {
        let plain = issue(&labels);
        IssueState {
            open,
            reopened: reopened && open,
            commit_id: (commit && !open).then(|| "abc".to_owned()),
            title: if edited { "new".to_owned() } else { plain.title.clone() },
            capabilities: plain.capabilities.clone().filter(|_| usable > 0),
            ..plain
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn the_rules_hold_in_every_state(task in proptest::option::of(any_task()), issue in any_issue()) {
        let decision = decide(task.as_ref(), &issue);
        let then = match decision {
            Decision::Apply { then, .. } => then,
            _ => None,
        };
        // A decision to write writes something.
        prop_assert_ne!(decision, Decision::Apply { update: false, then: None });
        // A closed issue starts nothing.
        prop_assert!(issue.open || (decision != Decision::Create && then != Some(Change::Reopen)));
        // Nor does one that asks no agent.
        if issue.capabilities.as_ref().is_none_or(CapabilitySet::is_empty) {
            prop_assert!(decision != Decision::Create && then != Some(Change::Reopen));
        }
        let Some(task) = task else {
            prop_assert!(matches!(decision, Decision::Create | Decision::Nothing(_)));
            return Ok(());
        };
        prop_assert_ne!(decision, Decision::Create);
        prop_assert!(task.leased || decision != Decision::Later);
        if task.leased && matches!(decision, Decision::Apply { .. }) {
            prop_assert!(matches!(then, Some(Change::Cancel | Change::Complete)));
        }
        // What is finished leaves its status in two ways only, and is completed once.
        if task.status.is_terminal() {
            prop_assert!(then != Some(Change::Cancel));
        } else {
            prop_assert!(then != Some(Change::Reopen));
        }
        prop_assert!(task.status != Status::Completed || then != Some(Change::Complete));
        // A known pull request explains a closing.
        if task.has_pull_request {
            prop_assert!(then != Some(Change::Complete));
        }
        // The forge's words about a task stay in the one table.
        use crate::model::{EventType, may};
        let allowed = match then {
            Some(Change::Cancel) => may(Some(task.status), Status::Cancelled, EventType::Cancelled),
            Some(Change::Complete) => may(Some(task.status), Status::Completed, EventType::Completed),
            Some(Change::Reopen) => may(Some(task.status), Status::Created, EventType::Reopened),
            None => true,
        };
        prop_assert!(allowed, "{:?} {:?}", task.status, then);
    }

    #[test]
    fn what_was_applied_changes_nothing_more(task in any_task(), issue in any_issue()) {
        let Decision::Apply { update, then } = decide(Some(&task), &issue) else { return Ok(()) };
        let mut after = TaskView { issue_open: issue.open, leased: false, ..task };
        if update {
            after.title = issue.title.clone();
            after.body = issue.body.clone();
            after.labels = issue.labels.clone();
            after.priority = issue.priority;
            after.capabilities = issue.capabilities.clone().unwrap().as_slice().to_vec();
        }
        after.status = match then {
            Some(Change::Cancel) => Status::Cancelled,
            Some(Change::Complete) => Status::Completed,
            Some(Change::Reopen) => Status::Created,
            None => after.status,
        };
        let applied = IssueState { reopened: false, commit_id: None, ..issue };
        prop_assert!(nothing(decide(Some(&after), &applied)));
    }
}
