//! A delivery's headers and body as types.
//!
//! Field names and traps: Forgejo `modules/structs/{hook,issue,repo,user,issue_label}.go` and
//! `modules/webhook/type.go`. Read leniently: unknown fields are ignored, arrays may be null, times may be zero; what is
//! foreign text is cut and cleaned so that it can be stored.

use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::model::{Repo, clean_text, words};

/// Bytes of a title; the forge itself stops at 255 characters.
const MAX_TITLE: usize = 1_000;
/// Bytes of a body; a delivery is at most 5 MiB.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Bytes of a label's name, an account's name, a branch's name.
const MAX_NAME: usize = 255;
/// Bytes of an address.
const MAX_URL: usize = 2_000;
/// Bytes of a delivery id; the forge sends a UUID.
const MAX_DELIVERY_ID: usize = 128;

/// The fine event (`Event-Type`), or the coarse one where a sender has no fine one. GitHub's come last: Forgejo sends all
/// families, whatever the hook's type.
const EVENT_HEADERS: [&str; 6] = [
    "x-forgejo-event-type",
    "x-gitea-event-type",
    "x-github-event-type",
    "x-forgejo-event",
    "x-gitea-event",
    "x-github-event",
];
const DELIVERY_HEADERS: [&str; 3] = ["x-forgejo-delivery", "x-gitea-delivery", "x-github-delivery"];

/// What is known of every delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The forge's UUID. A sender that gives none gets `<event>-<hex of the body's SHA-256>`, so that the same bytes sent
    /// twice are still one delivery.
    pub delivery_id: String,
    /// `issues`, `issue_label`, `push`, …; empty when no header says.
    pub event_type: String,
    /// `opened`, `edited`, …; empty when the body has none.
    pub action: String,
    /// SHA-256 of the body. The forge's Replay button sends the same bytes under a new delivery id.
    pub body_hash: [u8; 32],
}

words! {
    /// What happened to an issue, of what matters here.
    IssueAction {
        /// It came to be; labels may already be set.
        Opened = "opened",
        /// Title or body changed.
        Edited = "edited",
        /// Closed, by hand or by a commit.
        Closed = "closed",
        /// Opened again.
        Reopened = "reopened",
        /// Labels were added or removed; only the full new list is told.
        LabelUpdated = "label_updated",
        /// All labels were removed.
        LabelCleared = "label_cleared",
    }
}

/// An issue as it was when the event happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueEvent {
    /// What happened.
    pub action: IssueAction,
    /// `full_name` in the forge's case.
    pub repo: Repo,
    /// Positive; counts per repository.
    pub number: i64,
    /// Never empty, one line.
    pub title: String,
    /// Markdown; may be empty.
    pub body: String,
    /// Names of all labels, in the forge's order.
    pub labels: Vec<String>,
    /// False once closed.
    pub open: bool,
    /// To the second, as the forge has it; the epoch when it says nothing.
    pub updated_at: Timestamp,
    /// The issue's page, if its address is http(s).
    pub html_url: Option<String>,
    /// The commit that closed (or reopened) it.
    pub commit_id: Option<String>,
    /// The account that acted; `unknown` when it is not told.
    pub sender: String,
}

impl IssueEvent {
    /// The key of the issue's task: `owner/name#42`.
    pub fn key(&self) -> String {
        format!("{}#{}", self.repo.full_name, self.number)
    }
}

/// What a delivery says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An issue changed.
    Issue(Box<IssueEvent>),
    /// Nothing for us, and why.
    Ignored(&'static str),
}

/// Why a correctly signed body is refused with 400. Quotes nothing of the body.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadError {
    /// Not JSON, or a field is of another type than the forge's.
    #[error("the body is not a webhook payload in JSON (line {line}, column {column})")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// A field that is needed is absent or makes no sense.
    #[error("{field} is missing or is not {expected}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

/// Reads a delivery whose signature has been verified. `header` looks up one header by its lower-case name.
///
/// Dispatches on the fine event and the action. `issues` and `issue_label` are both taken, since the coarse header says
/// `issues` for label changes and some senders put `issue_label` there.
pub fn parse<'h>(
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
) -> Result<(Delivery, Content), PayloadError> {
    let first = |names: &[&str]| {
        names
            .iter()
            .filter_map(|name| header(name))
            .map(str::trim)
            .find(|value| !value.is_empty())
            .map(str::to_owned)
    };
    let event_type = clean_text(&first(&EVENT_HEADERS).unwrap_or_default(), MAX_NAME);
    let body_hash: [u8; 32] = Sha256::digest(body).into();
    let action: Action = read(body)?;
    let delivery = Delivery {
        delivery_id: first(&DELIVERY_HEADERS)
            .filter(|id| id.len() <= MAX_DELIVERY_ID && id.bytes().all(|b| b.is_ascii_graphic()))
            .unwrap_or_else(|| format!("{event_type}-{}", hex::encode(body_hash))),
        event_type,
        action: clean_text(&action.action.unwrap_or_default(), MAX_NAME),
        body_hash,
    };
    if !matches!(&*delivery.event_type, "issues" | "issue_label") {
        return Ok((delivery, Content::Ignored("not an event of an issue")));
    }
    let Ok(action) = delivery.action.parse::<IssueAction>() else {
        return Ok((delivery, Content::Ignored("this action changes no task")));
    };
    let content = issue(action, read(body)?)?;
    Ok((delivery, content))
}

fn read<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, PayloadError> {
    serde_json::from_slice(body)
        // serde's own text quotes values.
        .map_err(|error| PayloadError::Json { line: error.line(), column: error.column() })
}

fn issue(action: IssueAction, payload: IssuePayload) -> Result<Content, PayloadError> {
    let issue = payload.issue;
    if issue.pull_request.is_some_and(|value| !value.is_null()) {
        return Ok(Content::Ignored("this issue is a pull request"));
    }
    let number = issue.number.or(payload.number).filter(|number| *number > 0).ok_or(
        PayloadError::Field { field: "issue.number", expected: "a positive whole number" },
    )?;
    let repo = repo(payload.repository.unwrap_or_default())?;
    let open = match issue.state.as_deref() {
        Some("open") => true,
        Some("closed") => false,
        None | Some("") => action != IssueAction::Closed,
        Some(_) => {
            let expected = "\"open\" or \"closed\"";
            return Err(PayloadError::Field { field: "issue.state", expected });
        }
    };
    let title = clean_text(&issue.title.unwrap_or_default(), MAX_TITLE).replace(['\n', '\r'], " ");
    let labels = issue.labels.unwrap_or_default().into_iter().flatten();
    let sender = payload.sender.unwrap_or_default();
    let name = [sender.login, sender.username].into_iter().flatten().find(|n| !n.is_empty());
    Ok(Content::Issue(Box::new(IssueEvent {
        action,
        title: if title.trim().is_empty() { format!("{repo}#{number}") } else { title },
        body: clean_text(&issue.body.unwrap_or_default(), MAX_BODY),
        labels: labels
            .filter_map(|label| label.name)
            .map(|name| clean_text(&name, MAX_NAME))
            .filter(|name| !name.is_empty())
            .collect(),
        open,
        updated_at: time(issue.updated_at.as_deref())?,
        html_url: address(issue.html_url, &["https://", "http://"]),
        commit_id: payload
            .commit_id
            .map(|id| clean_text(id.trim(), MAX_NAME))
            .filter(|id| !id.is_empty()),
        sender: name.map_or_else(|| "unknown".to_owned(), |name| clean_text(&name, MAX_NAME)),
        number,
        repo,
    })))
}

fn repo(given: RepoPayload) -> Result<Repo, PayloadError> {
    let full_name = given.full_name.unwrap_or_default();
    let fits = full_name.split_once('/').is_some_and(|(owner, name)| {
        [owner, name].into_iter().all(|part| {
            (1..=100).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && part != "."
                && part != ".."
        })
    });
    if !fits {
        return Err(PayloadError::Field {
            field: "repository.full_name",
            expected: "`owner/name`",
        });
    }
    // These reach a git command: what could be taken for an option is left out.
    let ssh = |url: &str| url.starts_with("ssh://") || is_scp_address(url);
    Ok(Repo {
        full_name,
        clone_url: address(given.clone_url, &["https://", "http://"]),
        ssh_url: given.ssh_url.filter(|url| ssh(url)).and_then(|url| address(Some(url), &[""])),
        default_branch: given.default_branch.filter(|branch| {
            (1..=MAX_NAME).contains(&branch.len())
                && !branch.starts_with('-')
                && !branch.contains(|c: char| c.is_whitespace() || c.is_control())
        }),
    })
}

/// `user@host:path`, as git takes it.
fn is_scp_address(url: &str) -> bool {
    url.split_once('@').is_some_and(|(user, rest)| {
        !user.is_empty()
            && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !user.starts_with('-')
            && !rest.starts_with('-')
            && rest.contains(':')
    })
}

/// An address of one of these kinds, without spaces; others are not kept, since pages link to it and git clones it.
fn address(url: Option<String>, starts: &[&str]) -> Option<String> {
    url.filter(|url| {
        (1..=MAX_URL).contains(&url.len())
            && starts.iter().any(|start| url.starts_with(start))
            && !url.contains(|c: char| c.is_whitespace() || c.is_control())
    })
}

/// The forge writes RFC 3339 with an offset. No time, the zero time of Go and the epoch all mean "not told".
fn time(text: Option<&str>) -> Result<Timestamp, PayloadError> {
    match text {
        None | Some("") => Ok(Timestamp::UNIX_EPOCH),
        Some(text) => match text.parse::<Timestamp>() {
            Ok(time) => Ok(time.max(Timestamp::UNIX_EPOCH)),
            Err(_) => Err(PayloadError::Field {
                field: "issue.updated_at",
                expected: "a time in RFC 3339",
            }),
        },
    }
}

#[derive(Debug, Deserialize)]
struct Action {
    action: Option<String>,
}

/// `IssuePayload` of the forge, of which only this is read. Never read: `secret`, which old Gitea sent in plain text.
#[derive(Debug, Deserialize)]
struct IssuePayload {
    number: Option<i64>,
    issue: IssueFields,
    repository: Option<RepoPayload>,
    sender: Option<UserPayload>,
    commit_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct IssueFields {
    number: Option<i64>,
    title: Option<String>,
    body: Option<String>,
    labels: Option<Vec<Option<LabelPayload>>>,
    state: Option<String>,
    updated_at: Option<String>,
    html_url: Option<String>,
    pull_request: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct LabelPayload {
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct RepoPayload {
    full_name: Option<String>,
    clone_url: Option<String>,
    ssh_url: Option<String>,
    default_branch: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct UserPayload {
    login: Option<String>,
    username: Option<String>,
}

#[cfg(test)]
mod tests;
