//! Tasks come into being: by API, by SQL, by the forge.

use std::{borrow::Cow, collections::HashMap};

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
use crate::model::{
    Actor, EventType, ExecutionMode, Priority, Repo, Source, Task, TaskId, Traceparent,
};

/// How often a batch is tried while others make the same tasks.
const TRIES: usize = 3;

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
    /// Stands in [`Identified`]: the same request in another trace is the same request.
    #[serde(skip)]
    pub traceparent: Option<Traceparent>,
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

impl Creation {
    /// Takes what was created together apart again.
    fn by_request(self, requests: &[(usize, &[Identified<'_>])]) -> Vec<(usize, Self)> {
        let (mut tasks, mut places) = (self.tasks.into_iter(), self.places);
        let own = |(place, rows): &(usize, &[Identified<'_>])| {
            let tasks: Vec<Task> = tasks.by_ref().take(rows.len()).collect();
            let ids = tasks.iter().map(|task| task.task_id).collect();
            // Whose places they are does not matter to who is woken.
            let places = std::mem::take(&mut places);
            (*place, Self { outcome: Created::New(ids), tasks, places })
        };
        requests.iter().map(own).collect()
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
#[derive(Debug, Clone, Serialize)]
pub(super) struct Identified<'a> {
    task_id: TaskId,
    key: String,
    request_hash: String,
    actor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<Traceparent>,
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
            traceparent: task.traceparent,
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
        self.know_lanes(sets(std::slice::from_ref(request))).await?;
        let count = request.tasks.len();
        let ids = retry!(self.make_ids_and_find(count, &[]).await)?.0;
        let rows = identified(&ids, std::slice::from_ref(request));
        retry!(self.create_once(&rows, request.idempotency_key.as_deref()).await)
    }

    /// The same for requests that arrived together, none of which has an Idempotency-Key, and whose keys are distinct. What
    /// is new is created in one transaction, also beside requests that came before: after an outage most may have, each
    /// repeated by a client that had no answer.
    pub async fn create_together(
        &self,
        requests: &[NewRequest],
    ) -> Result<Vec<Creation>, StoreError> {
        if let [one] = requests {
            return Ok(vec![self.create_tasks(one).await?]);
        }
        self.know_lanes(sets(requests)).await?;
        let count = requests.iter().map(|r| r.tasks.len()).sum();
        let named: Vec<&str> =
            requests.iter().flat_map(|r| &r.tasks).filter_map(|task| task.key.as_deref()).collect();
        let (ids, mut known) = retry!(self.make_ids_and_find(count, &named).await)?;
        let rows = identified(&ids, requests);
        let mut rest = rows.as_slice();
        let mut open: Vec<(usize, &[Identified<'_>])> = Vec::with_capacity(requests.len());
        for (place, request) in requests.iter().enumerate() {
            let (own, others) = rest.split_at(request.tasks.len());
            open.push((place, own));
            rest = others;
        }
        let mut made: Vec<(usize, Creation)> = Vec::with_capacity(requests.len());
        for _ in 0..TRIES {
            let came_before: Vec<(usize, &[Identified<'_>])> = open
                .extract_if(.., |(_, rows)| rows.iter().any(|row| known.contains_key(&row.key)))
                .collect();
            if !came_before.is_empty() {
                made.extend(self.tell(&came_before, &known).await?);
            }
            if open.is_empty() {
                break;
            }
            let rows: Cow<'_, [Identified<'_>]> = if made.is_empty() {
                Cow::Borrowed(&rows)
            } else {
                open.iter().flat_map(|(_, rows)| rows.iter().cloned()).collect()
            };
            if let Some(all) = retry!(self.create_all(&rows).await)? {
                made.extend(all.by_request(&open));
                open.clear();
                break;
            }
            // Somebody else, or this very call before its connection was lost.
            let keys: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
            known = find_known(&self.client().await?, &keys).await?;
        }
        for (place, rows) in open {
            made.push((place, retry!(self.create_once(rows, None).await)?));
        }
        made.sort_unstable_by_key(|(place, _)| *place);
        Ok(made.into_iter().map(|(_, creation)| creation).collect())
    }

    /// Ids for new tasks, and what is known under these keys, in one round trip.
    async fn make_ids_and_find(
        &self,
        count: usize,
        keys: &[&str],
    ) -> Result<(Vec<TaskId>, Known), StoreError> {
        let client = self.client().await?;
        if keys.is_empty() {
            return Ok((make_ids(&client, count).await?, Known::new()));
        }
        MAKE_TASK_IDS.prepare(&client).await?;
        FIND_TASKS_BY_KEY.prepare(&client).await?;
        tokio::try_join!(biased; make_ids(&client, count), find_known(&client, keys))
    }

    /// What came of requests some of whose keys are known.
    async fn tell(
        &self,
        requests: &[(usize, &[Identified<'_>])],
        known: &Known,
    ) -> Result<Vec<(usize, Creation)>, StoreError> {
        let told: Vec<Result<Vec<TaskId>, String>> =
            requests.iter().map(|(_, rows)| existing(rows, known, &[])).collect();
        let ids: Vec<TaskId> = told.iter().flatten().flatten().copied().collect();
        let mut tasks: HashMap<TaskId, Task> =
            self.get_tasks(&ids).await?.into_iter().map(|task| (task.task_id, task)).collect();
        let creation =
            |((place, rows), told): (&(usize, &[Identified<'_>]), Result<Vec<TaskId>, _>)| {
                let (outcome, tasks) = match told {
                    Err(key) => (Created::Conflict { key }, Vec::new()),
                    Ok(ids) => {
                        let shown: Vec<Task> =
                            ids.iter().filter_map(|id| tasks.remove(id)).collect();
                        // Its own ids: this very call, tried again after an unknown outcome.
                        let own = rows.iter().map(|row| row.task_id).eq(ids.iter().copied());
                        (if own { Created::New(ids) } else { Created::Repeated(ids) }, shown)
                    }
                };
                (*place, Creation { outcome, tasks, places: Vec::new() })
            };
        Ok(requests.iter().zip(told).map(creation).collect())
    }

    /// Gives each set that has none yet its lane.
    pub(super) async fn know_lanes<'a>(
        &self,
        sets: impl Iterator<Item = &'a [String]>,
    ) -> Result<(), StoreError> {
        let mut sets: Vec<&[String]> = sets.collect();
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
            let keys: Vec<&str> = rows.iter().map(|t| t.key.as_str()).collect();
            match existing(rows, &find_known(&tx, &keys).await?, &inserted.ids) {
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

/// What the tasks of requests require.
fn sets(requests: &[NewRequest]) -> impl Iterator<Item = &[String]> {
    requests.iter().flat_map(|r| &r.tasks).map(|task| task.capabilities.as_slice())
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

/// By key: the task, and the hash of the request that made it.
type Known = HashMap<String, (TaskId, Option<String>)>;

async fn find_known<C: GenericClient>(client: &C, keys: &[&str]) -> Result<Known, StoreError> {
    let rows = FIND_TASKS_BY_KEY.rows(client, &[&keys]).await?;
    let known = |row: &tokio_postgres::Row| {
        let hash = get::<Option<&[u8]>>(row, "request_hash").map(hex::encode);
        (get(row, "key"), (TaskId(get::<Uuid>(row, "task_id")), hash))
    };
    Ok(rows.iter().map(known).collect())
}

/// The ids of what exists under the keys of a request, when all of it exists and came from the same request; else the
/// first key that stands in the way. What was just inserted does not count as existing.
fn existing(
    tasks: &[Identified<'_>],
    known: &Known,
    inserted: &[TaskId],
) -> Result<Vec<TaskId>, String> {
    let before: Vec<_> = tasks
        .iter()
        .filter(|task| !inserted.contains(&task.task_id))
        .filter_map(|task| Some((task, known.get(&task.key)?)))
        .collect();
    // Where some are new, what existed before is in the way, whatever made it.
    let some_are_new = before.len() < tasks.len();
    let own = |(task, (id, hash)): (&Identified<'_>, &(TaskId, Option<String>))| {
        let same = hash.as_ref() == Some(&task.request_hash);
        if same && !some_are_new { Ok(*id) } else { Err(task.key.clone()) }
    };
    before.into_iter().map(own).collect()
}
