//! Replays whole deliveries, as a forge sends them, through signature and payload.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    payload::{Content, Delivery, IssueAction, IssueEvent, parse},
    signature::{SignatureError, verify},
};
use crate::{
    config::Secret,
    model::{Decision, IssueState, Priority, decide},
};

/// What `tests/fixtures/forgejo/README.md` names.
const SECRET: &str = "sign-only-these-fixtures";

struct Recorded {
    name: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Recorded {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn verify(&self, secret: &str) -> Result<(), SignatureError> {
        verify(|name| self.header(name), &self.body, &[Secret::new(secret)])
    }

    fn parse(&self) -> (Delivery, Content) {
        parse(|name| self.header(name), &self.body).unwrap()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All deliveries of a folder: `<name>.json` and `<name>.headers.json`.
fn recorded(folder: &Path) -> Vec<Recorded> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(name) = file.strip_suffix(".headers.json") else { continue };
        let headers: BTreeMap<String, String> =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        all.push(Recorded {
            headers: headers.into_iter().map(|(k, v)| (k.to_lowercase(), v)).collect(),
            body: fs::read(path.with_file_name(format!("{name}.json"))).unwrap(),
            name: name.to_owned(),
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn own() -> BTreeMap<String, Recorded> {
    let all = recorded(&root().join("tests/fixtures/forgejo"));
    all.into_iter().map(|r| (r.name.clone(), r)).collect()
}

fn event(name: &str) -> IssueEvent {
    match own()[name].parse().1 {
        Content::Issue(event) => *event,
        Content::Ignored(reason) => panic!("{name}: {reason}"),
    }
}

#[test]
fn own_deliveries_are_signed_and_a_changed_byte_is_noticed() {
    for recorded in own().values_mut() {
        assert_eq!(recorded.verify(SECRET), Ok(()), "{}", recorded.name);
        assert_eq!(recorded.verify("another"), Err(SignatureError::Bad));
        recorded.body.push(b'\n');
        assert_eq!(recorded.verify(SECRET), Err(SignatureError::Bad));
    }
}

#[test]
fn issues_are_read_whole() {
    let (delivery, _) = own()["label_updated"].parse();
    assert_eq!((&*delivery.event_type, &*delivery.action), ("issue_label", "label_updated"));
    assert!(delivery.delivery_id.starts_with("5eed0000-0000-4000-8000-"));

    let opened = event("opened");
    assert_eq!(
        (opened.action, opened.key().as_str()),
        (IssueAction::Opened, "Lighthouse/beacon#42")
    );
    assert_eq!(opened.title, "The lamp <flickers> & stops");
    assert!(opened.body.starts_with("Steps:"));
    assert_eq!((opened.open, opened.sender.as_str()), (true, "ada"));
    assert_eq!(opened.updated_at, "2026-05-04T08:00:00Z".parse().unwrap());
    assert_eq!(opened.commit_id, None);
    let repo = &opened.repo;
    assert_eq!(repo.clone_url.as_deref(), Some("https://forge.example/Lighthouse/beacon.git"));
    assert_eq!(repo.ssh_url.as_deref(), Some("ssh://git@forge.example/Lighthouse/beacon.git"));
    assert_eq!(repo.default_branch.as_deref(), Some("main"));

    assert_eq!(event("label_updated").labels, ["agent/code", "bug", "priority/high"]);
    assert_eq!(IssueState::from(event("label_updated")).priority, Priority::High);
    assert!(event("label_cleared").labels.is_empty());
    assert!(!event("closed").open && event("closed").commit_id.is_none());
    assert_eq!(event("closed_by_commit").commit_id.unwrap().len(), 40);
    assert!(IssueState::from(event("reopened")).reopened);
    assert_eq!(decide(None, &IssueState::from(opened)), Decision::Create);
}

#[test]
fn other_events_are_ignored() {
    for name in ["push", "issue_comment"] {
        assert!(matches!(own()[name].parse().1, Content::Ignored(_)), "{name}");
    }
}

/// Deliveries of real forges, which are not part of the project: replayed where they lie, when they are there.
#[test]
fn real_deliveries_pass_when_they_are_at_hand() {
    let folder = root().join("../shared/payloads");
    if !folder.exists() {
        return;
    }
    for mut recorded in recorded(&folder) {
        let name = recorded.name.clone();
        if name.starts_with("go-playground-gitea__") {
            let secret = "IsWishesWereHorsesWedAllBeEatingSteak!";
            assert_eq!(recorded.verify(secret), Ok(()), "{name}");
            recorded.body[0] ^= 1;
            assert_eq!(recorded.verify(secret), Err(SignatureError::Bad), "{name}");
            recorded.body[0] ^= 1;
        }
        let (_, content) = recorded.parse();
        let heard = name.contains("__issues__") || name.contains("__issue_label__");
        assert_eq!(matches!(content, Content::Issue(_)), heard, "{name}: {content:?}");
    }
}
