//! Who is heard, and what an event says.

use jiff::Timestamp;

use super::*;
use crate::model::Priority;

#[test]
fn an_event_becomes_a_state() {
    let event = |action, open| {
        IssueState::from(IssueEvent {
            action,
            repo: "org/repo".parse().unwrap(),
            number: 1,
            title: "t".into(),
            body: "b".into(),
            labels: vec!["agent/code".into(), "priority/low".into()],
            open,
            updated_at: Timestamp::UNIX_EPOCH,
            html_url: None,
            commit_id: Some("abc".to_owned()),
            sender: "ada".into(),
        })
    };
    let state = event(IssueAction::Reopened, true);
    assert_eq!(
        (state.reopened, state.commit_id.clone(), state.priority),
        (true, None, Priority::Low)
    );
    assert_eq!(state.capabilities.as_ref().unwrap().as_slice(), ["agent:code"]);
    let kept: IssueState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    assert_eq!(kept, state);
    let state = event(IssueAction::Closed, false);
    assert_eq!((state.reopened, state.commit_id.as_deref()), (false, Some("abc")));
}

#[test]
fn repositories_are_heard_by_name_or_owner() {
    let list = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    for (patterns, name, heard) in [
        (&[][..], "any/thing", true),
        (&["org/repo"], "org/repo", true),
        (&["org/repo"], "Org/Repo", true),
        (&["org/repo"], "org/repo2", false),
        (&["org/*"], "ORG/x", true),
        (&["org/*"], "organ/x", false),
        (&["org/*"], "org", false),
        (&["a/b", "c/*"], "c/d", true),
        (&["a/b", "c/*"], "a/d", false),
    ] {
        assert_eq!(is_heard(&list(patterns), name), heard, "{patterns:?} {name}");
    }
}
