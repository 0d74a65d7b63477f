//! Tasks come into being: by API, by SQL, by the forge.

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    ReadyPlace, Store, StoreError,
    connection::{GenericClient, begin, commit},
    error::retry,
    journal::{Journal, Line},
    rows::get,
    statement::{
        FIND_IDEMPOTENCY_KEY, FIND_TASKS_BY_KEY, GET_TASKS, INSERT_IDEMPOTENCY_KEY, INSERT_TASKS,
        INTERN_LANES, MAKE_TASK_IDS, SET_IDEMPOTENCY_TASKS,
    },
    tasks::show,
};
use crate::model::{Actor, EventType, ExecutionMode, Priority, Repo, Source, Task, TaskId};

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

/// What came of a request.
#[derive(Debug)]
pub struct Creation {
    /// In a word.
    pub outcome: Created,
    /// Its tasks, as they are now, in the order of the request.
    pub tasks: Vec<Task>,
    /// Where those that are ready stand.
    pub places: Vec<ReadyPlace>,
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
    actor: String,
    #[serde(flatten)]
    task: &'a NewTask,
}

impl<'a> Identified<'a> {
    /// A task that nobody named is named by its id.
    pub(super) fn new(task_id: TaskId, task: &'a NewTask, actor: &Actor) -> Self {
        Self {
            task_id,
            key: task.key.clone().unwrap_or_else(|| task_id.to_string()),
            request_hash: hex::encode(task.request_hash()),
            actor: actor.to_string(),
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

/// Tasks that were inserted, in the order of the request.
#[derive(Debug)]
pub(super) struct Inserted {
    pub(super) ids: Vec<TaskId>,
    /// Of those that are ready.
    pub(super) places: Vec<ReadyPlace>,
}

/// Inserts those whose key is free.
pub(super) async fn insert<C: GenericClient>(
    client: &C,
    tasks: &[Identified<'_>],
    journal: &mut Journal,
) -> Result<Inserted, StoreError> {
    let rows = INSERT_TASKS.rows(client, &[&serde_json::json!(tasks)]).await?;
    for row in &rows {
        let place = usize::try_from(get::<i64>(row, "ord") - 1).unwrap_or(usize::MAX);
        let Some(task) = tasks.get(place) else { continue };
        journal.note(|| Line {
            task_id: task.task_id.0,
            key: Some(task.key.clone()),
            event: EventType::Created.to_string(),
            status: Some(get(row, "status")),
            attempt: Some(0),
            actor: task.actor.clone(),
            ..Line::default()
        });
    }
    let ids = rows.iter().map(|r| TaskId(get::<Uuid>(r, "task_id"))).collect();
    let places = rows
        .iter()
        .filter(|row| get::<&str>(row, "status") == "created")
        .filter_map(|row| {
            Some(ReadyPlace {
                lane_id: get::<Option<i64>>(row, "lane_id")?,
                priority: get(row, "priority"),
                seq: get(row, "seq"),
            })
        })
        .collect();
    Ok(Inserted { ids, places })
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
    pub async fn create_tasks(&self, request: &NewRequest) -> Result<Creation, StoreError> {
        self.know_lanes(std::slice::from_ref(request)).await?;
        let ids = make_ids(&self.client().await?, request.tasks.len()).await?;
        let rows = identified(&ids, std::slice::from_ref(request));
        retry!(self.create_once(&rows, request.idempotency_key.as_deref()).await)
    }

    /// The same for requests that arrived together, none of which has an Idempotency-Key, and whose keys are distinct: in
    /// one transaction when nothing is in the way of any, else each in its own.
    pub async fn create_together(
        &self,
        requests: &[NewRequest],
    ) -> Result<Vec<Creation>, StoreError> {
        if let [one] = requests {
            return Ok(vec![self.create_tasks(one).await?]);
        }
        self.know_lanes(requests).await?;
        let count = requests.iter().map(|r| r.tasks.len()).sum();
        let ids = make_ids(&self.client().await?, count).await?;
        let rows = identified(&ids, requests);
        if let Some(all) = retry!(self.create_all(&rows).await)? {
            let (mut tasks, mut places) =
                (all.tasks.into_iter(), all.places.into_iter().peekable());
            let mut first = true;
            return Ok(requests
                .iter()
                .map(|request| {
                    let tasks: Vec<Task> = tasks.by_ref().take(request.tasks.len()).collect();
                    let ids = tasks.iter().map(|task| task.task_id).collect();
                    // Whose places they are does not matter to who is woken.
                    let places = if std::mem::take(&mut first) {
                        places.by_ref().collect()
                    } else {
                        Vec::new()
                    };
                    Creation { outcome: Created::New(ids), tasks, places }
                })
                .collect());
        }
        let mut created = Vec::with_capacity(requests.len());
        for request in requests {
            created.push(self.create_tasks(request).await?);
        }
        Ok(created)
    }

    /// Gives each set that has none yet its lane.
    async fn know_lanes(&self, requests: &[NewRequest]) -> Result<(), StoreError> {
        let mut sets: Vec<&[String]> =
            requests.iter().flat_map(|r| &r.tasks).map(|t| t.capabilities.as_slice()).collect();
        sets.sort_unstable();
        sets.dedup();
        sets.retain(|set| !self.ready().has_lane(set));
        if sets.is_empty() { Ok(()) } else { self.intern_lanes(sets.into_iter()).await }
    }

    /// All of them, or `None` and nothing when a key is in the way.
    async fn create_all(&self, rows: &[Identified<'_>]) -> Result<Option<Creation>, StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let mut journal = Journal::default();
        let (inserted, tasks) = insert_and_show(&tx, rows, &mut journal).await?;
        if inserted.ids.len() < rows.len() {
            return Ok(None);
        }
        commit(tx).await?;
        journal.write();
        Ok(Some(Creation { outcome: Created::New(inserted.ids), tasks, places: inserted.places }))
    }

    async fn create_once(
        &self,
        rows: &[Identified<'_>],
        idempotency_key: Option<&str>,
    ) -> Result<Creation, StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let nothing = |outcome| Creation { outcome, tasks: Vec::new(), places: Vec::new() };

        if let Some(key) = idempotency_key {
            let mut hasher = Sha256::new();
            for task in rows {
                hasher.update(&task.request_hash);
            }
            let hash = hasher.finalize().to_vec();
            if INSERT_IDEMPOTENCY_KEY.run(&tx, &[&key, &hash]).await? == 0 {
                let row = FIND_IDEMPOTENCY_KEY.one(&tx, &[&key]).await?;
                if get::<Vec<u8>>(&row, "request_hash") != hash {
                    return Ok(nothing(Created::Conflict { key: key.to_owned() }));
                }
                let ids: Vec<TaskId> =
                    get::<Vec<Uuid>>(&row, "task_ids").into_iter().map(TaskId).collect();
                let tasks = show(&tx, &ids).await?;
                return Ok(Creation { tasks, ..nothing(Created::Repeated(ids)) });
            }
        }

        let mut journal = Journal::default();
        let (inserted, mut tasks) = insert_and_show(&tx, rows, &mut journal).await?;
        let outcome = if inserted.ids.len() == rows.len() {
            Created::New(inserted.ids)
        } else {
            match existing(&tx, rows, &inserted.ids).await? {
                // Without a name from the client it can only be this very call, tried again after an unknown outcome.
                Ok(ids) if rows.iter().all(|t| t.task.key.is_none()) => Created::New(ids),
                Ok(ids) => {
                    tasks = show(&tx, &ids).await?;
                    Created::Repeated(ids)
                }
                // All or none: the transaction ends without a commit.
                Err(key) => return Ok(nothing(Created::Conflict { key })),
            }
        };
        if let (Some(key), Created::New(ids) | Created::Repeated(ids)) = (idempotency_key, &outcome)
        {
            let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
            SET_IDEMPOTENCY_TASKS.run(&tx, &[&key, &ids]).await?;
        }
        commit(tx).await?;
        journal.write();
        Ok(Creation { outcome, tasks, places: inserted.places })
    }
}

fn identified<'a>(ids: &[TaskId], requests: &'a [NewRequest]) -> Vec<Identified<'a>> {
    let tasks = requests.iter().flat_map(|r| r.tasks.iter().map(|task| (task, &r.actor)));
    ids.iter().zip(tasks).map(|(id, (task, actor))| Identified::new(*id, task, actor)).collect()
}

/// Inserts them and reads them in one round trip.
async fn insert_and_show<C: GenericClient>(
    client: &C,
    rows: &[Identified<'_>],
    journal: &mut Journal,
) -> Result<(Inserted, Vec<Task>), StoreError> {
    INSERT_TASKS.prepare(client).await?;
    GET_TASKS.prepare(client).await?;
    let ids: Vec<TaskId> = rows.iter().map(|row| row.task_id).collect();
    tokio::try_join!(biased; insert(client, rows, journal), show(client, &ids))
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
