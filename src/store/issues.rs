//! Issues of the forge: the newest state of each is kept, and applied to its task when that is free.

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    DeliveryOutcome, DeliveryResult, IssueDefaults, NewTask, StoreError,
    connection::GenericClient,
    insert::{self, Identified},
    journal::{Journal, Line},
    rows::{self, get, word},
    statement::{
        CANCEL_TASK, COMPLETE_BY_FORGE, LOCK_ISSUE_TASK, READ_ISSUE, RETRY_TASK, SET_ISSUE_APPLIED,
        UPDATE_SPEC,
    },
    traced::Traced,
};
use crate::model::{
    Actor, Change, Decision, EventType, ExecutionMode, IssueState, Lease, Priority, Source, Status,
    TaskId, TaskView, decide,
};

/// Applies the newest state of an issue to its task, which is free again.
pub(super) async fn apply<C: GenericClient>(
    client: &C,
    key: &str,
    journal: &mut Journal,
) -> Result<(), StoreError> {
    apply_or_create(client, key, None, journal).await.map(|_| ())
}

pub(super) async fn find<C: GenericClient>(
    client: &C,
    key: &str,
) -> Result<Option<TaskId>, StoreError> {
    let row = super::statement::FIND_TASK.row(client, &[&key]).await?;
    Ok(row.map(|r| TaskId(get::<Uuid>(&r, "task_id"))))
}

/// The same for a state that was just delivered: with `defaults` it may make the task.
pub(super) async fn apply_or_create<C: GenericClient>(
    client: &C,
    key: &str,
    defaults: Option<IssueDefaults>,
    journal: &mut Journal,
) -> Result<DeliveryOutcome, StoreError> {
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
        Decision::Later => Ok(DeliveryOutcome {
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
            Ok(DeliveryOutcome {
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
) -> Result<DeliveryOutcome, StoreError> {
    let task = new_task(key, issue, issue_version, defaults);
    let actor = Actor::Forge(issue.sender.clone());
    let id = insert::make_ids(client, 1)
        .await?
        .pop()
        .ok_or_else(|| StoreError::Unknown { what: "no id for a new task".into() })?;
    match insert::insert(client, &[Identified::new(id, &task, &actor)], false, journal)
        .await?
        .tasks
        .pop()
    {
        Some(task) => Ok(DeliveryOutcome {
            result: DeliveryResult::Created,
            task_id: Some(task.task_id),
            reason: None,
            wakes: true,
        }),
        // Somebody created it by API under the same key at this very moment; the next delivery updates it.
        None => Ok(ignored(find(client, key).await?, "a task of this key has just been created")),
    }
}

/// The task that an issue opens.
pub(super) fn new_task(
    key: &str,
    issue: &IssueState,
    issue_version: i64,
    defaults: IssueDefaults,
) -> NewTask {
    NewTask {
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

fn ignored(task_id: Option<TaskId>, reason: &'static str) -> DeliveryOutcome {
    DeliveryOutcome { result: DeliveryResult::Ignored, task_id, reason: Some(reason), wakes: false }
}
