//! Tasks come into being: by API, by SQL, by the forge.

use std::{borrow::Cow, collections::HashMap};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    ReadyPlace, Store, StoreError,
    connection::{GenericClient, begin_planned, commit},
    error::retry,
    insert::{Identified, Inserted, Tell, insert, insert_all, make_ids},
    journal::Journal,
    rows::get,
    statement::{
        FIND_IDEMPOTENCY_KEY, FIND_TASKS_BY_KEY, INSERT_IDEMPOTENCY_KEY, INTERN_LANES,
        MAKE_TASK_IDS, SET_IDEMPOTENCY_TASKS,
    },
    tasks::show,
};
use crate::model::{Actor, ExecutionMode, Priority, Repo, Source, Task, TaskId, Traceparent};

/// How often a batch is tried while others make the same tasks.
const TRIES: usize = 3;

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

/// What came of a request.
#[derive(Debug)]
pub struct Creation {
    /// In a word.
    pub outcome: Created,
    /// Its tasks, as they are now, in the order of the request.
    pub tasks: Vec<Task>,
    /// Where those that are ready stand.
    pub places: Vec<ReadyPlace>,
    /// The other replicas are told of these places.
    pub told: bool,
}

impl Creation {
    /// Of what came before, or of the key that is in the way.
    fn of_before(
        rows: &[Identified<'_>],
        before: Result<Vec<TaskId>, String>,
        tasks: Vec<Task>,
    ) -> Self {
        let outcome = match before {
            Err(key) => Created::Conflict { key },
            // Its own ids: this very call, tried again after an unknown outcome.
            Ok(ids) if rows.iter().map(|row| row.task_id).eq(ids.iter().copied()) => {
                Created::New(ids)
            }
            Ok(ids) => Created::Repeated(ids),
        };
        Self { outcome, tasks, places: Vec::new(), told: false }
    }

    /// Takes what was created together apart again.
    fn by_request(self, requests: &[(usize, &[Identified<'_>])]) -> Vec<(usize, Self)> {
        let (mut tasks, mut places, told) = (self.tasks.into_iter(), self.places, self.told);
        let own = |(place, rows): &(usize, &[Identified<'_>])| {
            let tasks: Vec<Task> = tasks.by_ref().take(rows.len()).collect();
            let ids = tasks.iter().map(|task| task.task_id).collect();
            // Whose places they are does not matter to who is woken.
            let places = std::mem::take(&mut places);
            (*place, Self { outcome: Created::New(ids), tasks, places, told })
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
        request: &NewRequest,
        tell: &Tell<'_>,
    ) -> Result<Creation, StoreError> {
        self.know_lanes(sets(&[request])).await?;
        let count = request.tasks.len();
        let ids = retry!(self.make_ids_and_find(count, &[]).await)?.0;
        let rows = identified(&ids, &[request]);
        match &request.idempotency_key {
            Some(key) => retry!(self.create_under(&rows, key).await),
            None => retry!(self.create_alone(&rows, tell).await),
        }
    }

    /// The same for requests that arrived together, none of which has an Idempotency-Key, and whose keys are distinct. What
    /// is new is created in one transaction, also beside requests that came before: after an outage most may have, each
    /// repeated by a client that had no answer.
    pub async fn create_together(
        &self,
        requests: &[&NewRequest],
        tell: &Tell<'_>,
    ) -> Result<Vec<Creation>, StoreError> {
        if let [one] = requests {
            return Ok(vec![self.create_tasks(one, tell).await?]);
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
            if let Some(all) = retry!(self.create_all(&rows, tell).await)? {
                made.extend(all.by_request(&open));
                open.clear();
                break;
            }
            // Somebody else, or this very call before its connection was lost.
            known = find_known(&self.client().await?, &rows).await?;
        }
        for (place, rows) in open {
            made.push((place, retry!(self.create_alone(rows, tell).await)?));
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
        tokio::try_join!(biased; make_ids(&client, count), find_keys(&client, keys, &[]))
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
        let creation = |((place, rows), told): (&(usize, &[Identified<'_>]), Result<Vec<_>, _>)| {
            let ids = told.iter().flatten();
            let own = ids.filter_map(|id| tasks.remove(id)).collect();
            (*place, Creation::of_before(rows, told, own))
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

    /// All of them, or `None` and nothing when something is in the way.
    async fn create_all(
        &self,
        rows: &[Identified<'_>],
        tell: &Tell<'_>,
    ) -> Result<Option<Creation>, StoreError> {
        let mut client = self.client().await?;
        let mut journal = Journal::default();
        let Some(inserted) = insert_all(&mut client, rows, tell, &mut journal).await? else {
            return Ok(None);
        };
        journal.write();
        let outcome = Created::New(inserted.ids());
        let Inserted { tasks, places, told } = inserted;
        Ok(Some(Creation { outcome, tasks, places, told }))
    }

    /// A request by itself.
    async fn create_alone(
        &self,
        rows: &[Identified<'_>],
        tell: &Tell<'_>,
    ) -> Result<Creation, StoreError> {
        if let Some(all) = self.create_all(rows, tell).await? {
            return Ok(all);
        }
        let before = existing(rows, &find_known(&self.client().await?, rows).await?, &[]);
        let tasks = self.get_tasks(before.as_deref().unwrap_or_default()).await?;
        Ok(Creation::of_before(rows, before, tasks))
    }

    /// A request that has a name.
    async fn create_under(
        &self,
        rows: &[Identified<'_>],
        idempotency_key: &str,
    ) -> Result<Creation, StoreError> {
        let mut client = self.client().await?;
        let tx = begin_planned(&mut client).await?;
        let nothing =
            |outcome| Creation { outcome, tasks: Vec::new(), places: Vec::new(), told: false };

        let mut hasher = Sha256::new();
        for row in rows {
            let hash = row.request_hash.unwrap_or_else(|| row.task.request_hash());
            hasher.update(hex::encode(hash));
        }
        let hash = hasher.finalize().to_vec();
        if INSERT_IDEMPOTENCY_KEY.run(&tx, &[&idempotency_key, &hash]).await? == 0 {
            let row = FIND_IDEMPOTENCY_KEY.one(&tx, &[&idempotency_key]).await?;
            if get::<Vec<u8>>(&row, "request_hash") != hash {
                return Ok(nothing(Created::Conflict { key: idempotency_key.to_owned() }));
            }
            let ids: Vec<TaskId> =
                get::<Vec<Uuid>>(&row, "task_ids").into_iter().map(TaskId).collect();
            let tasks = show(&tx, &ids).await?;
            return Ok(Creation { tasks, ..nothing(Created::Repeated(ids)) });
        }

        let mut journal = Journal::default();
        let inserted = insert(&tx, rows, true, &mut journal).await?;
        let mut ids = inserted.ids();
        let Inserted { mut tasks, places, told } = inserted;
        let all_new = ids.len() == rows.len();
        if !all_new {
            match existing(rows, &find_known(&tx, rows).await?, &ids) {
                Ok(before) => ids = before,
                // All or none: the transaction ends without a commit.
                Err(key) => return Ok(nothing(Created::Conflict { key })),
            }
            tasks = show(&tx, &ids).await?;
        }
        let uuids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        SET_IDEMPOTENCY_TASKS.run(&tx, &[&idempotency_key, &uuids]).await?;
        let outcome = if all_new { Created::New(ids) } else { Created::Repeated(ids) };
        commit(tx).await?;
        journal.write();
        Ok(Creation { outcome, tasks, places, told })
    }
}

/// What the tasks of requests require.
fn sets<'a>(requests: &[&'a NewRequest]) -> impl Iterator<Item = &'a [String]> {
    requests.iter().flat_map(|r| &r.tasks).map(|task| task.capabilities.as_slice())
}

fn identified<'a>(ids: &[TaskId], requests: &[&'a NewRequest]) -> Vec<Identified<'a>> {
    let tasks = requests.iter().flat_map(|r| r.tasks.iter().map(|task| (task, &r.actor)));
    ids.iter().zip(tasks).map(|(id, (task, actor))| Identified::new(*id, task, actor)).collect()
}

/// By key: the task, and the hash of the request that made it.
type Known = HashMap<String, (TaskId, Option<Vec<u8>>)>;

/// What exists of these.
async fn find_known<C: GenericClient>(
    client: &C,
    tasks: &[Identified<'_>],
) -> Result<Known, StoreError> {
    let keys: Vec<&str> = tasks.iter().filter_map(|task| task.task.key.as_deref()).collect();
    let unnamed = tasks.iter().filter(|task| task.task.key.is_none());
    let unnamed: Vec<Uuid> = unnamed.map(|task| task.task_id.0).collect();
    find_keys(client, &keys, &unnamed).await
}

async fn find_keys<C: GenericClient>(
    client: &C,
    keys: &[&str],
    unnamed: &[Uuid],
) -> Result<Known, StoreError> {
    let rows = FIND_TASKS_BY_KEY.rows(client, &[&keys, &unnamed]).await?;
    let known = |row: &Row| {
        let task_id = TaskId(get::<Uuid>(row, "task_id"));
        (get(row, "key"), (task_id, get(row, "request_hash")))
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
    let own = |(task, (id, hash)): (&Identified<'_>, &(TaskId, Option<Vec<u8>>))| {
        // A task that nobody named was found by its own id.
        let same = task.request_hash.is_none_or(|own| hash.as_deref() == Some(&own[..]));
        if same && !some_are_new { Ok(*id) } else { Err(task.key.clone()) }
    };
    before.into_iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_hash_that_databases_are_full_of() {
        let mut task = NewTask {
            key: None,
            source: Source::Api,
            title: "a \"title\"".to_owned(),
            body: "a body \u{1f600}".to_owned(),
            labels: vec!["b".to_owned(), "a".to_owned()],
            capabilities: vec!["agent:code".to_owned()],
            priority: Priority::from_rank(3),
            execution_mode: ExecutionMode::HttpPull,
            max_retries: 2,
            timeout_secs: 60,
            run_at: None,
            repo: None,
            issue_url: None,
            issue_version: None,
            issue_open: None,
            traceparent: None,
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
