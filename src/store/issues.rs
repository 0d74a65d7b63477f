//! Issues of the forge: the newest state of each is kept, and applied to its task when that is free.

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    NewTask, Store, StoreError,
    connection::{GenericClient, begin, commit},
    create::{self, Identified},
    error::retry,
    journal::{Journal, Line},
    rows::{self, get, word},
    statement::{
        CANCEL_TASK, COMPLETE_BY_FORGE, FIND_DELIVERY, FIND_ISSUE_HASH, INSERT_DELIVERY,
        LOCK_ISSUE_TASK, READ_ISSUE, RETRY_TASK, SET_DELIVERY_RESULT, SET_ISSUE_APPLIED,
        UPDATE_SPEC, UPSERT_ISSUE,
    },
    traced::Traced,
};
use crate::model::{
    Actor, Change, Decision, EventType, ExecutionMode, IssueState, Lease, Priority, Source, Status,
    TaskId, TaskView, Traceparent, decide, words,
};

words! {
    /// What came of a delivery.
    DeliveryResult {
        /// A task was made.
        Created = "created",
        /// A task was changed, or will be when it is free.
        Updated = "updated",
        /// Nothing was to be done.
        Ignored = "ignored",
        /// It had been taken before.
        Duplicate = "duplicate",
    }
}

/// A delivery that is about an issue.
#[derive(Debug, Clone)]
pub struct IssueDelivery {
    /// Unique for each delivery.
    pub delivery_id: String,
    /// SHA-256 of the raw body.
    pub body_hash: [u8; 32],
    /// The fine event, `issues` or `issue_label`.
    pub event: String,
    /// What happened, `opened` and so on.
    pub action: String,
    /// `org/repo#42`
    pub key: String,
    /// The issue.
    pub state: IssueState,
}

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueOutcome {
    /// In one word.
    pub result: DeliveryResult,
    /// The task that it is about.
    pub task_id: Option<TaskId>,
    /// Why it was ignored.
    pub reason: Option<&'static str>,
    /// A task became ready, or a holder has to be told.
    pub wakes: bool,
}

/// What an issue does not say of its task: time limit and retries are from the configuration of the replica that heard of
/// it.
#[derive(Debug, Clone, Copy)]
pub struct IssueDefaults {
    /// Seconds.
    pub timeout_secs: i32,
    /// Retries.
    pub max_retries: i32,
    /// The trace of the delivery.
    pub traceparent: Option<Traceparent>,
}

impl Store {
    /// Takes a delivery about an issue: once, whatever its order, in one transaction.
    pub async fn take_issue(
        &self,
        delivery: &IssueDelivery,
        defaults: IssueDefaults,
    ) -> Result<IssueOutcome, StoreError> {
        if let Some(set) = &delivery.state.capabilities {
            self.intern_lanes(std::iter::once(set.as_slice())).await?;
        }
        retry!(self.take_issue_once(delivery, defaults).await)
    }

    async fn take_issue_once(
        &self,
        delivery: &IssueDelivery,
        defaults: IssueDefaults,
    ) -> Result<IssueOutcome, StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let hash = &delivery.body_hash[..];
        let id = &delivery.delivery_id;
        let first =
            INSERT_DELIVERY.run(&tx, &[id, &hash, &delivery.event, &delivery.action]).await?;
        if first == 0 {
            let row = FIND_DELIVERY.row(&tx, &[id]).await?;
            let task_id = row.and_then(|r| get::<Option<Uuid>>(&r, "task_id")).map(TaskId);
            return Ok(IssueOutcome {
                result: DeliveryResult::Duplicate,
                task_id,
                reason: Some("this delivery has been taken before"),
                wakes: false,
            });
        }
        let state = serde_json::to_value(&delivery.state).unwrap_or_default();
        let newer = UPSERT_ISSUE
            .row(
                &tx,
                &[
                    &delivery.key,
                    &delivery.state.updated_at,
                    &hash,
                    &state,
                    &delivery.state.reopened,
                ],
            )
            .await?;
        let mut journal = Journal::default();
        let outcome = if newer.is_some() {
            apply_or_create(&tx, &delivery.key, Some(defaults), &mut journal).await?
        } else {
            let same = FIND_ISSUE_HASH.row(&tx, &[&delivery.key, &hash]).await?;
            let same = same.is_some_and(|row| get(&row, "same"));
            IssueOutcome {
                result: if same { DeliveryResult::Duplicate } else { DeliveryResult::Ignored },
                task_id: find(&tx, &delivery.key).await?,
                reason: Some(if same {
                    "this state has been taken before"
                } else {
                    "a newer state of the issue is known"
                }),
                wakes: false,
            }
        };
        SET_DELIVERY_RESULT
            .run(
                &tx,
                &[id, &outcome.result.as_str(), &outcome.task_id.map(|t| t.0), &outcome.reason],
            )
            .await?;
        commit(tx).await?;
        journal.write();
        Ok(outcome)
    }

    /// Records a delivery that is about nothing of ours. False when it had been taken before.
    pub async fn take_other(
        &self,
        delivery_id: &str,
        body_hash: [u8; 32],
        event: &str,
        action: &str,
    ) -> Result<bool, StoreError> {
        let client = self.client().await?;
        let params: super::statement::Params<'_> =
            &[&delivery_id, &&body_hash[..], &event, &action];
        Ok(INSERT_DELIVERY.run(&client, params).await? == 1)
    }
}

/// Applies the newest state of an issue to its task, which is free again.
pub(super) async fn apply<C: GenericClient>(
    client: &C,
    key: &str,
    journal: &mut Journal,
) -> Result<(), StoreError> {
    apply_or_create(client, key, None, journal).await.map(|_| ())
}

async fn find<C: GenericClient>(client: &C, key: &str) -> Result<Option<TaskId>, StoreError> {
    let row = super::statement::FIND_TASK.row(client, &[&key]).await?;
    Ok(row.map(|r| TaskId(get::<Uuid>(&r, "task_id"))))
}

async fn apply_or_create<C: GenericClient>(
    client: &C,
    key: &str,
    defaults: Option<IssueDefaults>,
    journal: &mut Journal,
) -> Result<IssueOutcome, StoreError> {
    let locked = LOCK_ISSUE_TASK.row(client, &[&key]).await?;
    let task_id = locked.as_ref().map(|r| TaskId(get::<Uuid>(r, "task_id")));
    let version = locked.as_ref().map(|r| get::<i32>(r, "spec_version"));
    let row = READ_ISSUE.one(client, &[&key, &task_id.map(|t| t.0), &version]).await?;
    let mut issue: IssueState = rows::json(&row, "state")?
        .ok_or_else(|| StoreError::Unknown { what: "an issue without a state".into() })?;
    let issue_version: i64 = get(&row, "version");

    let (Some(locked), Some(task_id)) = (locked, task_id) else {
        return match (decide(None, &issue), defaults) {
            (Decision::Create, Some(defaults)) => {
                create_task(client, key, &issue, issue_version, defaults, journal).await
            }
            (Decision::Nothing(reason), _) => Ok(ignored(None, reason)),
            _ => Ok(ignored(None, "there is no task to change")),
        };
    };

    let view = TaskView {
        status: word(&locked, "status")?,
        leased: get::<Option<Uuid>>(&locked, "holder").is_some(),
        issue_open: get::<Option<bool>>(&locked, "issue_open").unwrap_or(true),
        has_pull_request: get(&locked, "has_pr"),
        title: get(&row, "title"),
        body: get(&row, "body"),
        labels: get(&row, "labels"),
        capabilities: get(&row, "capabilities"),
        priority: Priority::from_rank(get(&locked, "priority")),
    };
    let applied: i64 = get::<Option<i64>>(&locked, "issue_version").unwrap_or(0);
    issue.reopened = get::<i64>(&row, "reopened_version") > applied;
    match decide(Some(&view), &issue) {
        Decision::Create => Ok(ignored(Some(task_id), "the task exists")),
        Decision::Nothing(reason) => {
            SET_ISSUE_APPLIED.run(client, &[&task_id.0, &issue_version, &issue.open]).await?;
            Ok(ignored(Some(task_id), reason))
        }
        Decision::Later => Ok(IssueOutcome {
            result: DeliveryResult::Updated,
            task_id: Some(task_id),
            reason: Some("the task is leased; kept for when it is free"),
            wakes: false,
        }),
        Decision::Apply { update, then } => {
            let actor = Actor::Forge(issue.sender.clone()).to_string();
            let line = |event: EventType, status: Option<Status>| Line {
                task_id: task_id.0,
                event: event.to_string(),
                status: status.map(|status| status.to_string()),
                lease: Lease(get(&locked, "lease")),
                actor: actor.clone(),
                ..Line::default()
            };
            if update {
                update_spec(client, task_id, &issue, &actor).await?;
                journal.note(|| line(EventType::Updated, None));
            }
            let mut change = |row: &Row, event, to: Status| {
                if get(row, "applied") {
                    journal.note(|| Line {
                        from: Some(get(row, "status")),
                        lease: Lease(get(row, "lease")),
                        traced: (event == EventType::Cancelled)
                            .then(|| Traced::attempt(row, false))
                            .flatten(),
                        ..line(event, Some(to))
                    });
                }
            };
            match then {
                Some(Change::Cancel) => {
                    let reason = if issue.open {
                        "its last requirement label was removed"
                    } else {
                        "the issue was closed"
                    };
                    let row = CANCEL_TASK.one(client, &[&task_id.0, &actor, &reason]).await?;
                    change(&row, EventType::Cancelled, Status::Cancelled);
                }
                Some(Change::Complete) => {
                    let reason =
                        issue.commit_id.as_deref().map(|c| format!("closed by commit {c}"));
                    let row = COMPLETE_BY_FORGE.one(client, &[&task_id.0, &actor, &reason]).await?;
                    change(&row, EventType::Completed, Status::Completed);
                }
                Some(Change::Reopen) => {
                    let mode: Option<&str> = None;
                    let params: super::statement::Params<'_> =
                        &[&task_id.0, &actor, &mode, &"reopened"];
                    let row = RETRY_TASK.one(client, params).await?;
                    change(&row, EventType::Reopened, Status::Created);
                }
                None => {}
            }
            SET_ISSUE_APPLIED.run(client, &[&task_id.0, &issue_version, &issue.open]).await?;
            Ok(IssueOutcome {
                result: DeliveryResult::Updated,
                task_id: Some(task_id),
                reason: None,
                wakes: true,
            })
        }
    }
}

async fn create_task<C: GenericClient>(
    client: &C,
    key: &str,
    issue: &IssueState,
    issue_version: i64,
    defaults: IssueDefaults,
    journal: &mut Journal,
) -> Result<IssueOutcome, StoreError> {
    let task = NewTask {
        key: Some(key.to_owned()),
        source: Source::Forgejo,
        title: issue.title.clone(),
        body: issue.body.clone(),
        labels: issue.labels.clone(),
        capabilities: requirements(issue),
        priority: issue.priority,
        execution_mode: ExecutionMode::Undecided,
        max_retries: defaults.max_retries,
        timeout_secs: defaults.timeout_secs,
        run_at: None,
        repo: Some(issue.repo.clone()),
        issue_url: issue.issue_url.clone(),
        issue_version: Some(issue_version),
        issue_open: Some(issue.open),
        traceparent: defaults.traceparent,
    };
    let actor = Actor::Forge(issue.sender.clone());
    let id = create::make_ids(client, 1)
        .await?
        .pop()
        .ok_or_else(|| StoreError::Unknown { what: "no id for a new task".into() })?;
    match create::insert(client, &[Identified::new(id, &task, &actor)], journal).await?.ids.pop() {
        Some(task_id) => Ok(IssueOutcome {
            result: DeliveryResult::Created,
            task_id: Some(task_id),
            reason: None,
            wakes: true,
        }),
        // Somebody created it by API under the same key at this very moment; the next delivery updates it.
        None => Ok(ignored(find(client, key).await?, "a task of this key has just been created")),
    }
}

async fn update_spec<C: GenericClient>(
    client: &C,
    task_id: TaskId,
    issue: &IssueState,
    actor: &str,
) -> Result<(), StoreError> {
    let repo = serde_json::to_value(&issue.repo).unwrap_or_default();
    UPDATE_SPEC
        .run(
            client,
            &[
                &task_id.0,
                &issue.title,
                &issue.body,
                &issue.labels,
                &requirements(issue),
                &repo,
                &issue.issue_url,
                &issue.priority.rank(),
                &actor,
            ],
        )
        .await?;
    Ok(())
}

/// What the issue requires; a decision to write is never made on a set that cannot be stored.
fn requirements(issue: &IssueState) -> Vec<String> {
    issue.capabilities.as_ref().map(|set| set.as_slice().to_vec()).unwrap_or_default()
}

fn ignored(task_id: Option<TaskId>, reason: &'static str) -> IssueOutcome {
    IssueOutcome { result: DeliveryResult::Ignored, task_id, reason: Some(reason), wakes: false }
}
