//! What a client may say of a new task, checked.

use jiff::Timestamp;
use serde::Deserialize;

use super::error::{ApiError, bad_word};
use crate::{
    config::Config,
    model::{
        CapabilitySet, ExecutionMode, Priority, Repo, Source, TaskRef, check_text,
        priority_from_labels,
    },
    store::NewTask,
};

/// Bytes of a title.
const MAX_TITLE: usize = 1_000;
/// Bytes of a label, and how many.
const MAX_LABEL: usize = 255;
const MAX_LABELS: usize = 100;
/// Bytes of a key: it becomes part of a branch name and of paths.
const MAX_KEY: usize = 200;
const MAX_URL: usize = 2_000;

/// The body of `POST /api/v1/tasks`.
#[derive(Debug, Deserialize)]
pub(super) struct TaskBody {
    title: String,
    body: Option<String>,
    #[serde(default)]
    labels: Vec<String>,
    priority: Option<String>,
    execution_mode: Option<String>,
    key: Option<String>,
    run_at: Option<Timestamp>,
    timeout_secs: Option<i64>,
    max_retries: Option<i64>,
    repo: Option<RepoBody>,
    issue_url: Option<String>,
    source: Option<String>,
}

/// A repository, in full or by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RepoBody {
    Name(String),
    /// Not [`Repo`] itself: serde would also take an array for it, its fields by their order.
    Full(serde_json::Map<String, serde_json::Value>),
}

impl TaskBody {
    /// Checks everything before anything is done.
    pub(super) fn check(self, config: &Config) -> Result<NewTask, ApiError> {
        check_text("title", &self.title, MAX_TITLE)?;
        if self.title.trim().is_empty() {
            return Err(crate::model::InvalidText::Empty { field: "title" }.into());
        }
        let body = self.body.unwrap_or_default();
        check_text("body", &body, super::call::LARGE_BODY)?;
        if self.labels.len() > MAX_LABELS {
            return Err(ApiError::bad_request(format!("labels: at most {MAX_LABELS} are allowed")));
        }
        for label in &self.labels {
            check_text("labels", label, MAX_LABEL)?;
        }
        let repo = match self.repo {
            None => None,
            Some(RepoBody::Name(name)) => {
                Some(Repo { full_name: name, clone_url: None, ssh_url: None, default_branch: None })
            }
            Some(RepoBody::Full(fields)) => Some(
                serde_json::from_value::<Repo>(fields.into())
                    .map_err(|e| ApiError::bad_request(format!("repo: {e}")))?,
            ),
        };
        if let Some(repo) = &repo {
            for text in [
                Some(&repo.full_name),
                repo.clone_url.as_ref(),
                repo.ssh_url.as_ref(),
                repo.default_branch.as_ref(),
            ]
            .into_iter()
            .flatten()
            {
                check_line("repo", text, MAX_URL)?;
            }
        }
        if let Some(url) = &self.issue_url {
            check_line("issue_url", url, MAX_URL)?;
        }
        if self.run_at.is_some_and(|at| at < first_year()) {
            // PostgreSQL has no year 0, and writes those before it in another way.
            return Err(ApiError::bad_request("run_at: must not be before the year 1"));
        }
        let capabilities = CapabilitySet::required(&self.labels)
            .map_err(|e| ApiError::bad_request(format!("labels: {e}")))?;
        Ok(NewTask {
            key: self.key.map(check_key).transpose()?,
            source: match self.source.as_deref() {
                None | Some("api") => Source::Api,
                Some("cli") => Source::Cli,
                Some(_) => return Err(ApiError::bad_request("source: must be `api` or `cli`")),
            },
            priority: match &self.priority {
                Some(word) => word.parse::<Priority>().map_err(|e| bad_word("priority", &e))?,
                None => {
                    priority_from_labels(self.labels.iter().map(String::as_str)).unwrap_or_default()
                }
            },
            execution_mode: match &self.execution_mode {
                Some(word) => {
                    word.parse::<ExecutionMode>().map_err(|e| bad_word("execution_mode", &e))?
                }
                None => ExecutionMode::default(),
            },
            timeout_secs: number(
                "timeout_secs",
                self.timeout_secs,
                1..=2_592_000,
                config.tasks.timeout.as_secs(),
            )?,
            max_retries: number(
                "max_retries",
                self.max_retries,
                0..=100,
                u64::from(config.tasks.max_retries),
            )?,
            title: self.title,
            body,
            labels: self.labels,
            capabilities: capabilities.as_slice().to_vec(),
            run_at: self.run_at,
            repo,
            issue_url: self.issue_url,
            issue_version: None,
            issue_open: None,
            traceparent: None,
        })
    }
}

/// 0001-01-01T00:00:00Z.
fn first_year() -> Timestamp {
    Timestamp::UNIX_EPOCH - jiff::SignedDuration::from_secs(62_135_596_800)
}

/// A text of one line.
fn check_line(field: &'static str, text: &str, max: usize) -> Result<(), ApiError> {
    check_text(field, text, max)?;
    if text.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!(
            "{field} must be one line without control characters"
        )));
    }
    Ok(())
}

fn check_key(key: String) -> Result<String, ApiError> {
    check_line("key", &key, MAX_KEY)?;
    if key.trim().is_empty() {
        return Err(crate::model::InvalidText::Empty { field: "key" }.into());
    }
    if matches!(TaskRef::parse(&key), TaskRef::Id(_)) {
        // It would be taken for a task's id wherever a task is named.
        return Err(ApiError::bad_request("key: must not be a UUID"));
    }
    Ok(key)
}

fn number(
    field: &str,
    given: Option<i64>,
    bounds: std::ops::RangeInclusive<i64>,
    default: u64,
) -> Result<i32, ApiError> {
    let value = given.unwrap_or_else(|| i64::try_from(default).unwrap_or(i64::MAX));
    match i32::try_from(value) {
        Ok(number) if bounds.contains(&value) => Ok(number),
        _ => Err(ApiError::bad_request(format!(
            "{field}: must be a whole number from {} to {}",
            bounds.start(),
            bounds.end()
        ))),
    }
}
