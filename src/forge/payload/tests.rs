//! Lenient where the forge varies, strict where a task would be wrong, and never a panic.

use proptest::prelude::*;
use serde_json::json;

use super::*;

type Headers<'h> = &'h [(&'h str, &'h str)];

fn issues<'h>(name: &str) -> Option<&'h str> {
    (name == "x-gitea-event-type").then_some("issues")
}

fn minimal() -> serde_json::Value {
    json!({"action": "opened", "issue": {"number": 7}, "repository": {"full_name": "Org/re.po"}})
}

fn parse_json(value: &serde_json::Value) -> Result<Content, PayloadError> {
    parse(issues, value.to_string().as_bytes()).map(|(_, content)| content)
}

fn event(value: &serde_json::Value) -> IssueEvent {
    match parse_json(value) {
        Ok(Content::Issue(event)) => *event,
        other => panic!("{other:?}"),
    }
}

#[test]
fn almost_nothing_is_needed() {
    let event = event(&minimal());
    assert_eq!(event.key(), "Org/re.po#7");
    assert_eq!((event.title.as_str(), event.body.as_str()), ("Org/re.po#7", ""));
    assert_eq!((event.open, event.updated_at), (true, Timestamp::UNIX_EPOCH));
    assert_eq!(event.sender, "unknown");
}

#[test]
fn odd_values_are_made_storable() {
    let mut value = minimal();
    value["issue"] = json!({
        "number": 7, "title": "a\u{0}b\nc", "body": "é".repeat(MAX_BODY), "state": "closed",
        "labels": [null, {"name": "agent/code"}, {"name": null}, {"name": ""}, {"id": 3}],
        "updated_at": "0001-01-01T00:00:00Z", "html_url": "javascript:alert(1)", "assignees": null,
        "pull_request": null,
    });
    value["commit_id"] = json!("  ");
    value["repository"]["clone_url"] = json!("ext::sh -c x");
    value["repository"]["ssh_url"] = json!("-oProxyCommand=x");
    value["repository"]["default_branch"] = json!("--upload-pack=x");
    let event = event(&value);
    assert_eq!(event.title, "a\u{FFFD}b c");
    assert_eq!(event.body.len(), MAX_BODY);
    assert_eq!(event.labels, ["agent/code"]);
    assert_eq!((event.open, event.updated_at), (false, Timestamp::UNIX_EPOCH));
    assert_eq!((event.html_url, event.commit_id), (None, None));
    let repo = event.repo;
    assert_eq!((repo.clone_url, repo.ssh_url, repo.default_branch), (None, None, None));
}

#[test]
fn labels_may_be_null_and_the_number_may_stand_outside() {
    let mut value = minimal();
    value["issue"] = json!({"labels": null});
    value["number"] = json!(9);
    value["repository"]["ssh_url"] = json!("git@forge.example:Org/re.po.git");
    let event = event(&value);
    assert_eq!((event.number, event.labels.len()), (9, 0));
    assert_eq!(event.repo.ssh_url.as_deref(), Some("git@forge.example:Org/re.po.git"));
}

#[test]
fn what_makes_no_sense_is_named_and_not_quoted() {
    let cases = [
        ("/issue/number", json!(0), "issue.number"),
        ("/issue/number", json!(-3), "issue.number"),
        ("/issue/number", json!("canary"), "line 1"),
        ("/issue/number", json!(1e300), "line 1"),
        ("/issue", json!(null), "line 1"),
        ("/repository/full_name", json!("canary"), "repository.full_name"),
        ("/repository/full_name", json!("a/b/canary"), "repository.full_name"),
        ("/repository/full_name", json!("a/.."), "repository.full_name"),
        ("/repository/full_name", json!("a/b#canary"), "repository.full_name"),
        ("/repository", json!(null), "repository.full_name"),
        ("/action", json!(["canary"]), "line 1"),
    ];
    for (pointer, bad, named) in cases {
        let mut value = minimal();
        *value.pointer_mut(pointer).unwrap() = bad;
        let said = parse_json(&value).unwrap_err().to_string();
        assert!(said.contains(named) && !said.contains("canary"), "{pointer}: {said}");
    }
    let mut value = minimal();
    value["issue"]["state"] = json!("canary");
    assert!(parse_json(&value).unwrap_err().to_string().contains("issue.state"));
    value["issue"]["state"] = json!("open");
    value["issue"]["updated_at"] = json!("canary");
    assert!(parse_json(&value).unwrap_err().to_string().contains("issue.updated_at"));
    for body in [&b""[..], b"payload=%7B%7D", b"[]", b"null", b"{", b"\xff"] {
        assert!(matches!(parse(issues, body), Err(PayloadError::Json { .. })), "{body:?}");
    }
}

#[test]
fn the_fine_event_decides_and_the_coarse_one_stands_in() {
    let cases: &[(Headers<'_>, &str, bool)] = &[
        (
            &[("x-forgejo-event", "issues"), ("x-forgejo-event-type", "issue_label")],
            "label_updated",
            true,
        ),
        (
            &[("x-forgejo-event", "issues"), ("x-forgejo-event-type", "issue_assign")],
            "assigned",
            false,
        ),
        (
            &[("x-forgejo-event", "issues"), ("x-gitea-event-type", "issue_milestone")],
            "milestoned",
            false,
        ),
        (&[("x-gitea-event", "issue_label")], "label_cleared", true),
        (&[("x-github-event", "issues")], "reopened", true),
        (&[("x-github-event", "issues")], "assigned", false),
        (&[("x-forgejo-event", ""), ("x-forgejo-event-type", "package")], "created", false),
        (&[("x-forgejo-event-type", "issue_comment")], "created", false),
        (&[("x-forgejo-event-type", "pull_request")], "closed", false),
        (&[], "opened", false),
    ];
    for (headers, action, heard) in cases {
        let mut value = minimal();
        value["action"] = json!(action);
        let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        let (_, content) = parse(header, value.to_string().as_bytes()).unwrap();
        assert_eq!(matches!(content, Content::Issue(_)), *heard, "{headers:?} {action}");
    }
    let mut value = minimal();
    value["issue"]["pull_request"] = json!({"merged": false});
    assert!(matches!(parse_json(&value), Ok(Content::Ignored(_))));
}

#[test]
fn a_delivery_without_an_id_is_named_by_what_it_says() {
    let id = |given: Option<&str>, body: &[u8]| {
        let given = given.map(str::to_owned);
        let header = |name: &str| match name {
            "x-forgejo-event-type" => Some("push"),
            "x-gitea-delivery" => given.as_deref(),
            _ => None,
        };
        parse(header, body).unwrap().0.delivery_id
    };
    assert_eq!(id(Some("uuid"), b"{}"), "uuid");
    let derived = id(None, b"{}");
    assert!(derived.starts_with("push-44136fa3"), "{derived}");
    assert_eq!(derived, id(Some(""), b"{}"));
    assert_eq!(derived, id(Some(&"x".repeat(200)), b"{}"));
    assert_eq!(derived, id(Some("a\u{1}"), b"{}"));
    assert_ne!(derived, id(None, b"{ }"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        event in ".{0,20}", body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = parse(|_| Some(event.as_str()), &body);
        let _ = parse(issues, &body);
    }

    #[test]
    fn arbitrary_fields_never_panic_and_are_storable(
        full_name in "([a-z./#-]{0,9}|[a-z]{1,5}/[a-z]{1,5})", number in any::<i64>(),
        text in any::<String>(), state in "(open|closed|)", at in "([0-9TZ:+-]{0,25})?",
    ) {
        let value = json!({"action": "edited", "commit_id": text, "sender": {"login": text},
            "issue": {"number": number, "title": text, "body": text, "state": state,
                "updated_at": at, "html_url": text, "labels": [{"name": text}]},
            "repository": {"full_name": full_name, "clone_url": text, "ssh_url": text,
                "default_branch": text}});
        if let Ok(Content::Issue(event)) = parse_json(&value) {
            prop_assert!(event.number > 0 && !event.title.is_empty());
            for text in [&event.title, &event.body, &event.sender].into_iter().chain(&event.labels) {
                prop_assert!(!text.contains('\0'));
            }
            prop_assert_eq!(event.key().matches('#').count(), 1);
        }
    }
}
