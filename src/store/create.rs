//! Tasks come into being: by API, by SQL, by the forge.

use std::{borrow::Cow, collections::HashMap};

use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    ReadyPlace, Store, StoreError,
    connection::{GenericClient, begin_planned, commit},
    error::retry,
    insert::{Identified, Inserted, Tell, insert, insert_all, make_ids},
    journal::Journal,
    new_task::NewRequest,
    rows::get,
    statement::{
        FIND_IDEMPOTENCY_KEY, FIND_TASKS_BY_KEY, INSERT_IDEMPOTENCY_KEY, INTERN_LANES,
        MAKE_TASK_IDS, SET_IDEMPOTENCY_TASKS,
    },
    tasks::show,
};
use crate::model::{Task, TaskId};

/// How often a batch is tried while others make the same tasks.
const TRIES: usize = 3;

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
        let Inserted { tasks, places, told, .. } = inserted;
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
        let Inserted { mut tasks, places, .. } = inserted;
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
        Ok(Creation { tasks, places, ..nothing(outcome) })
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
