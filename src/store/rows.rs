//! Rows into the model's types.

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::{Row, types::FromSql};
use uuid::Uuid;

use super::StoreError;
use crate::model::{Event, Lease, Priority, Task, TaskId, branch_name};

/// A column that this program selected itself; its absence or type would be a mistake of ours that every test shows.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> T {
    row.get(column)
}

/// A column that holds a word of the model.
pub(super) fn word<T>(row: &Row, column: &'static str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
{
    let text: &str = row.get(column);
    text.parse().map_err(|_| StoreError::Unknown { what: format!("{column} `{text}`") })
}

/// A jsonb column whose shape this program wrote.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    row: &Row,
    column: &'static str,
) -> Result<Option<T>, StoreError> {
    row.get::<_, Option<Value>>(column)
        .filter(|value| !value.is_null())
        .map(serde_json::from_value)
        .transpose()
        .map_err(|e| StoreError::Unknown { what: format!("{column} of an unknown shape ({e})") })
}

/// A row of `get_tasks` or `list_tasks`; `body` only where the statement selects it.
pub(super) fn task(row: &Row) -> Result<Task, StoreError> {
    let key: String = get(row, "key");
    let capabilities: Vec<String> = get(row, "capabilities");
    Ok(Task {
        task_id: TaskId(get::<Uuid>(row, "task_id")),
        source: word(row, "source")?,
        title: get(row, "title"),
        body: row.try_get("body").ok(),
        labels: get(row, "labels"),
        task_type: Task::task_type_of(&capabilities),
        capabilities,
        priority: Priority::from_rank(get(row, "priority")),
        status: word(row, "status")?,
        execution_mode: word(row, "execution_mode")?,
        repo: json(row, "repo")?,
        issue_url: get(row, "issue_url"),
        prompt: None,
        pinned_to: get(row, "pinned_to"),
        assigned_agent_id: get(row, "assigned_agent_id"),
        assigned_host: get(row, "assigned_host"),
        lease: Lease(get(row, "lease")),
        lease_expires_at: get::<Option<Timestamp>>(row, "lease_expires_at"),
        deadline_at: get(row, "deadline_at"),
        attempt: get(row, "attempt"),
        max_retries: get(row, "max_retries"),
        retry_count: get(row, "retry_count"),
        review_count: get(row, "review_count"),
        timeout_secs: get(row, "timeout_secs"),
        run_at: get(row, "run_at"),
        branch_name: branch_name(&key),
        key,
        pr_url: get(row, "pr_url"),
        pr_title: get(row, "pr_title"),
        waiting_reason: get(row, "waiting_reason"),
        error: get(row, "error"),
        summary: get(row, "summary"),
        usage: json(row, "usage")?,
        notes: json(row, "notes")?.unwrap_or_default(),
        created_at: get(row, "created_at"),
        assigned_at: get(row, "assigned_at"),
        started_at: get(row, "started_at"),
        completed_at: get(row, "completed_at"),
        last_activity_at: get(row, "last_activity_at"),
    })
}

/// A row of the event log.
pub(super) fn event(row: &Row) -> Result<Event, StoreError> {
    Ok(Event {
        event_id: get(row, "event_id"),
        task_id: TaskId(get::<Uuid>(row, "task_id")),
        at: get(row, "at"),
        event_type: word(row, "type")?,
        from_status: get(row, "from_status"),
        to_status: get(row, "to_status"),
        actor: get(row, "actor"),
        lease: get(row, "lease"),
        attempt: get(row, "attempt"),
        detail: get(row, "detail"),
    })
}
