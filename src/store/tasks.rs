//! Tasks, read.

use std::collections::HashMap;

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{GenericClient, begin_snapshot, commit},
    error::retry,
    rows,
    rows::get,
    statement::{
        FIND_CLAIMS, FIND_TASK, FIND_TASKS_BY_KEY, GET_TASKS, LIST_RECEIPTS, LIST_TASK_EVENTS,
        LIST_TASKS,
    },
};
use crate::model::{
    Actor, Event, ExecutionMode, Lease, Source, Status, StoredReceipt, Task, TaskId, TaskRef,
};

/// What a list of tasks is narrowed to; what is `None` narrows nothing.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields are the query parameters of GET /api/v1/tasks")]
pub struct TaskFilter {
    pub status: Option<Status>,
    pub agent_id: Option<String>,
    pub execution_mode: Option<ExecutionMode>,
    pub capability: Option<String>,
    pub source: Option<Source>,
    pub q: Option<String>,
    /// Only tasks with a lower id: the next page.
    pub before: Option<TaskId>,
    /// How many, at most.
    pub limit: i64,
}

impl Store {
    /// The id of a task named by id or key; an id is not looked up.
    pub async fn resolve(&self, task: &TaskRef) -> Result<Option<TaskId>, StoreError> {
        match task {
            TaskRef::Id(id) => Ok(Some(*id)),
            TaskRef::Key(key) => {
                let row = self.read_row(&FIND_TASK, &[key]).await?;
                Ok(row.map(|r| TaskId(get::<Uuid>(&r, "task_id"))))
            }
        }
    }

    /// The same for many, in the order given.
    pub async fn resolve_all(&self, tasks: &[TaskRef]) -> Result<Vec<Option<TaskId>>, StoreError> {
        let keys: Vec<&str> = tasks
            .iter()
            .filter_map(|task| match task {
                TaskRef::Key(key) => Some(key.as_str()),
                TaskRef::Id(_) => None,
            })
            .collect();
        let mut known: HashMap<String, TaskId> = HashMap::new();
        if !keys.is_empty() {
            let none: Vec<Uuid> = Vec::new();
            let rows = self.read(&FIND_TASKS_BY_KEY, &[&keys, &none]).await?;
            known.extend(
                rows.iter().map(|r| (get::<String>(r, "key"), TaskId(get::<Uuid>(r, "task_id")))),
            );
        }
        let id = |task: &TaskRef| match task {
            TaskRef::Id(id) => Some(*id),
            TaskRef::Key(key) => known.get(key).copied(),
        };
        Ok(tasks.iter().map(id).collect())
    }

    /// One task in full.
    pub async fn get_task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        Ok(self.get_tasks(&[id]).await?.pop())
    }

    /// Tasks in full, in the order of `ids`; those that do not exist are left out.
    pub async fn get_tasks(&self, ids: &[TaskId]) -> Result<Vec<Task>, StoreError> {
        let uuids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        shown(ids, &self.read(&GET_TASKS, &[&uuids]).await?)
    }

    /// A page of tasks, newest first, without their text.
    pub async fn list_tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, StoreError> {
        self.search(
            &LIST_TASKS,
            &[
                &filter.status.map(Status::as_str),
                &filter.agent_id,
                &filter.execution_mode.map(ExecutionMode::as_str),
                &filter.capability,
                &filter.source.map(Source::as_str),
                &filter.q,
                &filter.before.map(|id| id.0),
                &filter.limit,
            ],
        )
        .await?
        .iter()
        .map(|row| rows::task(row, 0))
        .collect()
    }

    /// One task with its life (at most its first 1,000 events) and its receipts, oldest first: all of one moment.
    pub async fn get_history(
        &self,
        id: TaskId,
    ) -> Result<Option<(Task, Vec<Event>, Vec<StoredReceipt>)>, StoreError> {
        retry!(self.get_history_once(id).await)
    }

    async fn get_history_once(
        &self,
        id: TaskId,
    ) -> Result<Option<(Task, Vec<Event>, Vec<StoredReceipt>)>, StoreError> {
        let mut client = self.client().await?;
        let tx = begin_snapshot(&mut client).await?;
        let Some(task) = GET_TASKS.row(&tx, &[&vec![id.0]]).await? else { return Ok(None) };
        let events = LIST_TASK_EVENTS.rows(&tx, &[&id.0]).await?;
        let receipts = LIST_RECEIPTS.rows(&tx, &[&id.0]).await?;
        commit(tx).await?;
        let events = events.iter().map(rows::event).collect::<Result<_, _>>()?;
        let receipts = receipts.iter().map(receipt).collect::<Result<_, _>>()?;
        Ok(Some((rows::task(&task, 0)?, events, receipts)))
    }

    /// The life of one task, at most its first 1,000 events.
    pub async fn list_task_events(&self, id: TaskId) -> Result<Vec<Event>, StoreError> {
        self.read(&LIST_TASK_EVENTS, &[&id.0]).await?.iter().map(rows::event).collect()
    }

    /// The leases of the claims of a task that reached this claimer; of more than two, the oldest two.
    pub async fn find_claims(&self, id: TaskId, by: &Actor) -> Result<Vec<Lease>, StoreError> {
        let rows = self.read(&FIND_CLAIMS, &[&id.0, &by.to_string()]).await?;
        Ok(rows.iter().map(|row| Lease(get(row, "lease"))).collect())
    }
}

/// Tasks in full, in the order of `ids`; those that do not exist are left out.
pub(super) async fn show<C: GenericClient>(
    client: &C,
    ids: &[TaskId],
) -> Result<Vec<Task>, StoreError> {
    let uuids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    shown(ids, &GET_TASKS.rows(client, &[&uuids]).await?)
}

fn shown(ids: &[TaskId], rows: &[Row]) -> Result<Vec<Task>, StoreError> {
    let tasks = rows.iter().map(|row| rows::task(row, 0)).collect::<Result<Vec<_>, _>>()?;
    let mut tasks: HashMap<TaskId, Task> = tasks.into_iter().map(|t| (t.task_id, t)).collect();
    Ok(ids.iter().filter_map(|id| tasks.remove(id)).collect())
}

fn receipt(row: &Row) -> Result<StoredReceipt, StoreError> {
    Ok(StoredReceipt {
        lease: Lease(get(row, "lease")),
        agent_id: get(row, "agent_id"),
        received_at: rows::moment(row, "received_at"),
        receipt: rows::json(row, "body")?
            .ok_or_else(|| StoreError::Unknown { what: "a receipt without a body".into() })?,
    })
}
