//! What a creation asks for, and how a repeated request is told from another one.

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::model::{Actor, ExecutionMode, Priority, Repo, Source, Traceparent};

/// A task that is to be.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are the task's")]
pub struct NewTask {
    /// `None`: its id.
    pub key: Option<String>,
    pub source: Source,
    pub title: String,
    pub body: String,
    pub labels: Vec<String>,
    pub capabilities: Vec<String>,
    pub priority: Priority,
    pub execution_mode: ExecutionMode,
    pub max_retries: i32,
    pub timeout_secs: i32,
    pub run_at: Option<Timestamp>,
    pub repo: Option<Repo>,
    pub issue_url: Option<String>,
    /// For a task of the forge: the version of its issue, and that it is open.
    pub issue_version: Option<i64>,
    pub issue_open: Option<bool>,
    /// Not hashed: the same request in another trace is the same request.
    pub traceparent: Option<Traceparent>,
}

impl NewTask {
    /// Tells a repeated request from another one with the same key. The source does not count.
    pub fn request_hash(&self) -> [u8; 32] {
        let hashed = Hashed {
            body: &self.body,
            capabilities: &self.capabilities,
            execution_mode: self.execution_mode,
            issue_open: self.issue_open,
            issue_url: self.issue_url.as_deref(),
            issue_version: self.issue_version,
            key: self.key.as_deref(),
            labels: &self.labels,
            max_retries: self.max_retries,
            priority: self.priority.rank(),
            repo: self.repo.as_ref().map(|repo| HashedRepo {
                clone_url: repo.clone_url.as_deref(),
                default_branch: repo.default_branch.as_deref(),
                full_name: &repo.full_name,
                ssh_url: repo.ssh_url.as_deref(),
            }),
            run_at: self.run_at,
            timeout_secs: self.timeout_secs,
            title: &self.title,
        };
        Sha256::digest(serde_json::to_vec(&hashed).unwrap_or_default()).into()
    }
}

/// What is hashed of a request, in the order of the names: databases are full of such hashes.
#[derive(Serialize)]
struct Hashed<'a> {
    body: &'a str,
    capabilities: &'a [String],
    execution_mode: ExecutionMode,
    issue_open: Option<bool>,
    issue_url: Option<&'a str>,
    issue_version: Option<i64>,
    key: Option<&'a str>,
    labels: &'a [String],
    max_retries: i32,
    priority: i16,
    repo: Option<HashedRepo<'a>>,
    run_at: Option<Timestamp>,
    timeout_secs: i32,
    title: &'a str,
}

#[derive(Serialize)]
struct HashedRepo<'a> {
    clone_url: Option<&'a str>,
    default_branch: Option<&'a str>,
    full_name: &'a str,
    ssh_url: Option<&'a str>,
}

/// A request that makes tasks: all of them or none.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// Keys must be distinct within it.
    pub tasks: Vec<NewTask>,
    /// Names it, so that the same one again makes nothing.
    pub idempotency_key: Option<String>,
    /// Who makes them.
    pub actor: Actor,
}

#[cfg(test)]
impl NewTask {
    /// A task of an API's that requires nothing.
    pub(crate) fn for_test() -> Self {
        Self {
            key: None,
            source: Source::Api,
            title: "t".to_owned(),
            body: String::new(),
            labels: Vec::new(),
            capabilities: Vec::new(),
            priority: Priority::from_rank(1),
            execution_mode: ExecutionMode::Undecided,
            max_retries: 0,
            timeout_secs: 60,
            run_at: None,
            repo: None,
            issue_url: None,
            issue_version: None,
            issue_open: None,
            traceparent: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_hash_that_databases_are_full_of() {
        let mut task = NewTask {
            title: "a \"title\"".to_owned(),
            body: "a body \u{1f600}".to_owned(),
            labels: vec!["b".to_owned(), "a".to_owned()],
            capabilities: vec!["agent:code".to_owned()],
            priority: Priority::from_rank(3),
            execution_mode: ExecutionMode::HttpPull,
            max_retries: 2,
            ..NewTask::for_test()
        };
        let hash = "79df85e889edd4272de18d12f3f9044a401d0d860de7554734a7129b9eb627e8";
        assert_eq!(hex::encode(task.request_hash()), hash);
        task.key = Some("org/repo#1".to_owned());
        task.run_at = Some("2026-11-27T10:00:00.123456Z".parse().unwrap());
        task.issue_url = Some("https://forge/1".to_owned());
        (task.issue_version, task.issue_open) = (Some(7), Some(true));
        task.repo = Some(Repo {
            full_name: "org/repo".to_owned(),
            clone_url: Some("https://forge/org/repo.git".to_owned()),
            ssh_url: None,
            default_branch: Some("main".to_owned()),
        });
        task.source = Source::Forgejo;
        let hash = "259d6e73f8b9295e4be5fd3bafccf54304b86eaefecb5d6da3d839f73345fada";
        assert_eq!(hex::encode(task.request_hash()), hash);
    }
}
