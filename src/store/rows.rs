//! Rows into the model's types.

use std::error::Error;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::{
    Row,
    types::{FromSql, Type},
};
use uuid::Uuid;

use super::StoreError;
use crate::model::{Event, Lease, Priority, Task, TaskId, branch_name};

/// A column that this program selected itself; its absence or type would be a mistake of ours that every test shows.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> T {
    row.get(column)
}

/// A moment as it is stored. One that [`Timestamp`] has no room for (written by hand: the year 10000, infinity) is the
/// nearest for which it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(pub(super) Timestamp);

impl<'a> FromSql<'a> for Moment {
    fn from_sql(of: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        let nearest = if micros < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Ok(Self(Timestamp::from_sql(of, raw).unwrap_or(nearest)))
    }

    fn accepts(of: &Type) -> bool {
        <Timestamp as FromSql<'a>>::accepts(of)
    }
}

/// A column that holds a moment.
pub(super) fn moment(row: &Row, column: &str) -> Timestamp {
    get::<Moment>(row, column).0
}

/// A column that may hold one.
pub(super) fn moment_if_any(row: &Row, column: &str) -> Option<Timestamp> {
    get::<Option<Moment>>(row, column).map(|moment| moment.0)
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
    from_json(row.get(column), column)
}

fn from_json<T: serde::de::DeserializeOwned>(
    value: Option<Value>,
    column: &str,
) -> Result<Option<T>, StoreError> {
    value
        .filter(|value| !value.is_null())
        .map(serde_json::from_value)
        .transpose()
        .map_err(|e| StoreError::Unknown { what: format!("{column} of an unknown shape ({e})") })
}

/// The columns of a task, in the order of every statement that shows some; `body` only where there is one.
const TASK: [&str; 37] = [
    "task_id",
    "key",
    "source",
    "priority",
    "status",
    "execution_mode",
    "pinned_to",
    "lease",
    "attempt",
    "max_retries",
    "retry_count",
    "review_count",
    "timeout_secs",
    "run_at",
    "deadline_at",
    "assigned_agent_id",
    "assigned_host",
    "lease_expires_at",
    "created_at",
    "assigned_at",
    "started_at",
    "completed_at",
    "last_activity_at",
    "pr_url",
    "pr_title",
    "error",
    "traceparent",
    "title",
    "labels",
    "capabilities",
    "repo",
    "issue_url",
    "notes",
    "summary",
    "usage",
    "waiting_reason",
    "body",
];

/// The place of a column among those of a task; found when this program is built, since looking for each of them by its
/// name costs more than reading it.
const fn at(column: &str) -> usize {
    let mut place = 0;
    while !is_same(TASK[place].as_bytes(), column.as_bytes()) {
        place += 1;
    }
    place
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut n = 0;
    while n < one.len() {
        if one[n] != other[n] {
            return false;
        }
        n += 1;
    }
    true
}

/// A row of a statement that shows tasks: the first columns of the row, or those from `begin` on.
pub(super) fn task(row: &Row, begin: usize) -> Result<Task, StoreError> {
    /// A column as it is, as a word of the model or a moment that is or may be there, or as JSON.
    macro_rules! column {
        ($name:literal) => {
            row.get(begin + const { at($name) })
        };
        (word $name:literal) => {{
            let text: &str = column!($name);
            let unknown = || StoreError::Unknown { what: format!("{} `{text}`", $name) };
            text.parse().map_err(|_| unknown())?
        }};
        (optional word $name:literal) => {{
            let text: Option<&str> = column!($name);
            let unknown = || StoreError::Unknown { what: format!("{} `{text:?}`", $name) };
            text.map(str::parse).transpose().map_err(|_| unknown())?
        }};
        (moment $name:literal) => {{
            let moment: Moment = column!($name);
            moment.0
        }};
        (optional moment $name:literal) => {{
            let moment: Option<Moment> = column!($name);
            moment.map(|moment| moment.0)
        }};
        (json $name:literal) => {
            from_json(column!($name), $name)?
        };
    }
    let key: String = column!("key");
    let capabilities: Vec<String> = column!("capabilities");
    Ok(Task {
        task_id: TaskId(column!("task_id")),
        source: column!(word "source"),
        title: column!("title"),
        body: row.try_get(begin + const { at("body") }).ok(),
        labels: column!("labels"),
        task_type: Task::task_type_of(&capabilities),
        capabilities,
        priority: Priority::from_rank(column!("priority")),
        status: column!(word "status"),
        execution_mode: column!(word "execution_mode"),
        repo: column!(json "repo"),
        issue_url: column!("issue_url"),
        prompt: None,
        pinned_to: column!("pinned_to"),
        assigned_agent_id: column!("assigned_agent_id"),
        assigned_host: column!("assigned_host"),
        lease: Lease(column!("lease")),
        lease_expires_at: column!(optional moment "lease_expires_at"),
        deadline_at: column!(optional moment "deadline_at"),
        attempt: column!("attempt"),
        max_retries: column!("max_retries"),
        retry_count: column!("retry_count"),
        review_count: column!("review_count"),
        timeout_secs: column!("timeout_secs"),
        run_at: column!(optional moment "run_at"),
        branch_name: branch_name(&key),
        key,
        pr_url: column!("pr_url"),
        pr_title: column!("pr_title"),
        waiting_reason: column!("waiting_reason"),
        error: column!("error"),
        summary: column!("summary"),
        usage: column!(json "usage"),
        notes: column!(json "notes").unwrap_or_default(),
        traceparent: column!(optional word "traceparent"),
        created_at: column!(moment "created_at"),
        assigned_at: column!(optional moment "assigned_at"),
        started_at: column!(optional moment "started_at"),
        completed_at: column!(optional moment "completed_at"),
        last_activity_at: column!(optional moment "last_activity_at"),
    })
}

/// The same for a statement that shows only some of its rows; `None` for the others.
pub(super) fn shown_task(row: &Row) -> Result<Option<Task>, StoreError> {
    begin_of_shown(row).map(|begin| task(row, begin)).transpose()
}

/// True for a row of such a statement that shows one.
pub(super) fn shows_task(row: &Row) -> bool {
    begin_of_shown(row).is_some()
}

fn begin_of_shown(row: &Row) -> Option<usize> {
    let begin = row.len().checked_sub(TASK.len())?;
    row.get::<_, Option<&str>>(begin + const { at("title") }).is_some().then_some(begin)
}

/// A row of the event log.
pub(super) fn event(row: &Row) -> Result<Event, StoreError> {
    Ok(Event {
        event_id: get(row, "event_id"),
        task_id: TaskId(get::<Uuid>(row, "task_id")),
        at: moment(row, "at"),
        event_type: word(row, "type")?,
        from_status: get(row, "from_status"),
        to_status: get(row, "to_status"),
        actor: get(row, "actor"),
        lease: get(row, "lease"),
        attempt: get(row, "attempt"),
        detail: get(row, "detail"),
    })
}
