//! Tasks come into being: by API, by SQL, by the forge.

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{GenericClient, begin, commit},
    error::retry,
    rows::get,
    statement::{
        FIND_IDEMPOTENCY_KEY, FIND_TASKS_BY_KEY, INSERT_IDEMPOTENCY_KEY, INSERT_TASKS,
        INTERN_LANES, MAKE_TASK_IDS, SET_IDEMPOTENCY_TASKS,
    },
};
use crate::model::{Actor, ExecutionMode, Priority, Repo, Source, TaskId};

/// A task that is to be.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "the fields are the task's")]
pub struct NewTask {
    /// Stands in [`Identified`], where it is never null.
    #[serde(skip)]
    pub key: Option<String>,
    pub source: Source,
    pub title: String,
    pub body: String,
    pub labels: Vec<String>,
    pub capabilities: Vec<String>,
    #[serde(serialize_with = "rank")]
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
}

fn rank<S: serde::Serializer>(priority: &Priority, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_i16(priority.rank())
}

impl NewTask {
    /// Tells a repeated request from another one with the same key. The source does not count.
    pub fn request_hash(&self) -> [u8; 32] {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["key"] = self.key.clone().into();
        if let Some(map) = value.as_object_mut() {
            map.remove("source");
        }
        Sha256::digest(value.to_string()).into()
    }
}

/// What came of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// All are new, in the order of the request.
    New(Vec<TaskId>),
    /// The same request came before; these are its tasks.
    Repeated(Vec<TaskId>),
    /// This key was used for another body.
    Conflict {
        /// The key of the task, or the Idempotency-Key.
        key: String,
    },
}

/// A task with the id that it will have.
#[derive(Debug, Serialize)]
pub(super) struct Identified<'a> {
    task_id: TaskId,
    key: String,
    request_hash: String,
    #[serde(flatten)]
    task: &'a NewTask,
}

impl<'a> Identified<'a> {
    /// A task that nobody named is named by its id.
    pub(super) fn new(task_id: TaskId, task: &'a NewTask) -> Self {
        Self {
            task_id,
            key: task.key.clone().unwrap_or_else(|| task_id.to_string()),
            request_hash: hex::encode(task.request_hash()),
            task,
        }
    }
}

/// Ids for tasks that are to be made.
pub(super) async fn make_ids<C: GenericClient>(
    client: &C,
    count: usize,
) -> Result<Vec<TaskId>, StoreError> {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let rows = MAKE_TASK_IDS.rows(client, &[&count]).await?;
    Ok(rows.iter().map(|r| TaskId(get::<Uuid>(r, "task_id"))).collect())
}

/// Inserts those whose key is free; answers which those are, in the order of the request.
pub(super) async fn insert<C: GenericClient>(
    client: &C,
    tasks: &[Identified<'_>],
    actor: &Actor,
) -> Result<Vec<TaskId>, StoreError> {
    let rows = serde_json::json!(tasks);
    let rows = INSERT_TASKS.rows(client, &[&rows, &actor.to_string()]).await?;
    Ok(rows.iter().map(|r| TaskId(get::<Uuid>(r, "task_id"))).collect())
}

impl Store {
    /// Gives each set of requirements its lane, in a transaction of its own.
    pub async fn intern_lanes<'a>(
        &self,
        sets: impl Iterator<Item = &'a [String]>,
    ) -> Result<(), StoreError> {
        let sets: serde_json::Value = sets.map(|s| serde_json::json!(s)).collect();
        let client = self.client().await?;
        INTERN_LANES.run(&client, &[&sets]).await?;
        Ok(())
    }

    /// Creates all of them or none. Keys must be distinct within the request.
    pub async fn create_tasks(
        &self,
        tasks: &[NewTask],
        idempotency_key: Option<&str>,
        actor: &Actor,
    ) -> Result<Created, StoreError> {
        self.intern_lanes(tasks.iter().map(|t| t.capabilities.as_slice())).await?;
        let ids = make_ids(&self.client().await?, tasks.len()).await?;
        let rows: Vec<Identified<'_>> =
            ids.into_iter().zip(tasks).map(|(id, task)| Identified::new(id, task)).collect();
        retry!(self.create_once(&rows, idempotency_key, actor).await)
    }

    async fn create_once(
        &self,
        tasks: &[Identified<'_>],
        idempotency_key: Option<&str>,
        actor: &Actor,
    ) -> Result<Created, StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;

        if let Some(key) = idempotency_key {
            let mut hasher = Sha256::new();
            for task in tasks {
                hasher.update(&task.request_hash);
            }
            let hash = hasher.finalize().to_vec();
            if INSERT_IDEMPOTENCY_KEY.run(&tx, &[&key, &hash]).await? == 0 {
                let row = FIND_IDEMPOTENCY_KEY.one(&tx, &[&key]).await?;
                if get::<Vec<u8>>(&row, "request_hash") != hash {
                    return Ok(Created::Conflict { key: key.to_owned() });
                }
                let ids = get::<Vec<Uuid>>(&row, "task_ids").into_iter().map(TaskId).collect();
                return Ok(Created::Repeated(ids));
            }
        }

        let inserted = insert(&tx, tasks, actor).await?;
        let created = if inserted.len() == tasks.len() {
            Created::New(inserted)
        } else {
            match existing(&tx, tasks, &inserted).await? {
                // Without a name from the client it can only be this very call, tried again after an unknown outcome.
                Ok(ids) if tasks.iter().all(|t| t.task.key.is_none()) => Created::New(ids),
                Ok(ids) => Created::Repeated(ids),
                // All or none: the transaction ends without a commit.
                Err(key) => return Ok(Created::Conflict { key }),
            }
        };
        if let (Some(key), Created::New(ids) | Created::Repeated(ids)) = (idempotency_key, &created)
        {
            let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
            SET_IDEMPOTENCY_TASKS.run(&tx, &[&key, &ids]).await?;
        }
        commit(tx).await?;
        Ok(created)
    }
}

/// The ids of what exists under the keys of a request, when all of it exists and came from the same request; else the
/// first key that stands in the way.
async fn existing<C: GenericClient>(
    client: &C,
    tasks: &[Identified<'_>],
    inserted: &[TaskId],
) -> Result<Result<Vec<TaskId>, String>, StoreError> {
    let keys: Vec<&str> = tasks.iter().map(|t| t.key.as_str()).collect();
    let rows = FIND_TASKS_BY_KEY.rows(client, &[&keys]).await?;
    let mut ids = Vec::with_capacity(tasks.len());
    for task in tasks {
        let Some(row) = rows.iter().find(|r| get::<&str>(r, "key") == task.key) else { continue };
        let same = get::<Option<&[u8]>>(row, "request_hash").map(hex::encode)
            == Some(task.request_hash.clone());
        let id = TaskId(get::<Uuid>(row, "task_id"));
        // Where some are new, what existed before is in the way, whatever made it.
        if !same || (!inserted.is_empty() && !inserted.contains(&id)) {
            return Ok(Err(task.key.clone()));
        }
        ids.push(id);
    }
    Ok(Ok(ids))
}
