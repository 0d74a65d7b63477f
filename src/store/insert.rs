//! The statement that brings tasks into being: its parameters, and what its rows say.

use jiff::Timestamp;
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

use super::{
    ReadyPlace, StoreError,
    client::Client,
    connection::{GenericClient, begin_planned, commit, open},
    journal::{Journal, Line},
    new_task::NewTask,
    rows::{get, moment, moment_if_any, word},
    statement::{INSERT_TASKS, MAKE_TASK_IDS, Params},
};
use crate::model::{Actor, EventType, Lease, Repo, Status, Task, TaskId, branch_name};

/// A task with the id that it will have.
#[derive(Debug, Clone)]
pub(super) struct Identified<'a> {
    pub(super) task_id: TaskId,
    /// Its id if nobody named it.
    pub(super) key: String,
    /// Of a task that was named: tells a repeated request from another one. Who repeats another finds it by its own id.
    pub(super) request_hash: Option<[u8; 32]>,
    actor: String,
    pub(super) task: &'a NewTask,
}

impl<'a> Identified<'a> {
    /// A task that nobody named is named by its id.
    pub(super) fn new(task_id: TaskId, task: &'a NewTask, actor: &Actor) -> Self {
        Self {
            task_id,
            key: task.key.clone().unwrap_or_else(|| task_id.to_string()),
            request_hash: task.key.as_ref().map(|_| task.request_hash()),
            actor: actor.to_string(),
            task,
        }
    }

    /// The task as it is when it was just made, by its row of `insert_tasks`: as `get_tasks` would show it, without reading it.
    fn made(&self, row: &Row) -> Result<Task, StoreError> {
        let task = self.task;
        Ok(Task {
            task_id: self.task_id,
            key: self.key.clone(),
            source: task.source,
            title: task.title.clone(),
            body: Some(task.body.clone()),
            labels: task.labels.clone(),
            task_type: Task::task_type_of(&task.capabilities),
            capabilities: task.capabilities.clone(),
            priority: task.priority,
            status: word(row, "status")?,
            execution_mode: task.execution_mode,
            repo: task.repo.clone(),
            issue_url: task.issue_url.clone(),
            prompt: None,
            pinned_to: None,
            assigned_agent_id: None,
            assigned_host: None,
            lease: Lease::default(),
            lease_expires_at: None,
            deadline_at: None,
            attempt: 0,
            max_retries: task.max_retries,
            retry_count: 0,
            review_count: 0,
            timeout_secs: task.timeout_secs,
            run_at: moment_if_any(row, "run_at"),
            branch_name: branch_name(&self.key),
            pr_url: None,
            pr_title: None,
            waiting_reason: get(row, "waiting_reason"),
            error: None,
            summary: None,
            usage: None,
            notes: Vec::new(),
            traceparent: task.traceparent,
            created_at: moment(row, "created_at"),
            assigned_at: None,
            started_at: None,
            completed_at: None,
            last_activity_at: None,
        })
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

/// May tell the other replicas of a task that is being committed, see [`super::Store::await_creations`]. False when that is left to
/// the caller.
pub type Tell<'a> = dyn Fn(ReadyPlace) -> bool + Sync + 'a;

/// Tasks that were inserted, in the order of the request.
#[derive(Debug)]
pub(super) struct Inserted {
    pub(super) tasks: Vec<Task>,
    /// Of those that are ready.
    pub(super) places: Vec<ReadyPlace>,
    /// The other replicas are told of these places.
    pub(super) told: bool,
    /// Who is told of them before they are committed can wait for that.
    held: bool,
}

impl Inserted {
    pub(super) fn ids(&self) -> Vec<TaskId> {
        self.tasks.iter().map(|task| task.task_id).collect()
    }
}

/// The parameters of `insert_tasks`.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    keys: Vec<Option<&'a str>>,
    sources: Vec<&'static str>,
    priorities: Vec<i16>,
    modes: Vec<&'static str>,
    retries: Vec<i32>,
    timeouts: Vec<i32>,
    due: Vec<Option<Timestamp>>,
    titles: Vec<&'a str>,
    bodies: Vec<&'a str>,
    labels: Vec<String>,
    capabilities: Vec<String>,
    repos: Vec<Option<Json<&'a Repo>>>,
    issues: Vec<Option<&'a str>>,
    hashes: Vec<Option<&'a [u8]>>,
    versions: Vec<Option<i64>>,
    open: Vec<Option<bool>>,
    actors: Vec<&'a str>,
    traces: Vec<Option<String>>,
}

impl<'a> Columns<'a> {
    fn of(tasks: &'a [Identified<'_>]) -> Self {
        let mut columns = Self::default();
        for Identified { task_id, request_hash, actor, task, .. } in tasks {
            columns.ids.push(task_id.0);
            columns.keys.push(task.key.as_deref());
            columns.sources.push(task.source.as_str());
            columns.priorities.push(task.priority.rank());
            columns.modes.push(task.execution_mode.as_str());
            columns.retries.push(task.max_retries);
            columns.timeouts.push(task.timeout_secs);
            columns.due.push(task.run_at);
            columns.titles.push(&task.title);
            columns.bodies.push(&task.body);
            columns.labels.push(literal(&task.labels));
            columns.capabilities.push(literal(&task.capabilities));
            columns.repos.push(task.repo.as_ref().map(Json));
            columns.issues.push(task.issue_url.as_deref());
            columns.hashes.push(request_hash.as_ref().map(<[u8; 32]>::as_slice));
            columns.versions.push(task.issue_version);
            columns.open.push(task.issue_open);
            columns.actors.push(actor);
            columns.traces.push(task.traceparent.map(|trace| trace.to_string()));
        }
        columns
    }

    async fn insert<C: GenericClient>(
        &self,
        client: &C,
        say_why: bool,
    ) -> Result<Vec<Row>, StoreError> {
        let params: Params<'_> = &[
            &self.ids,
            &self.keys,
            &self.sources,
            &self.priorities,
            &self.modes,
            &self.retries,
            &self.timeouts,
            &self.due,
            &self.titles,
            &self.bodies,
            &self.labels,
            &self.capabilities,
            &self.repos,
            &self.issues,
            &self.hashes,
            &self.versions,
            &self.open,
            &self.actors,
            &self.traces,
            &say_why,
        ];
        INSERT_TASKS.rows(client, params).await
    }
}

/// A list as PostgreSQL writes an array: arrays of arrays would all have to be of one length.
fn literal(list: &[String]) -> String {
    let mut text = String::with_capacity(2 + list.iter().map(|item| item.len() + 3).sum::<usize>());
    for item in list {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push('"');
        for c in item.chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    if text.is_empty() {
        text.push('{');
    }
    text.push('}');
    text
}

/// Inserts those whose key is free. With `say_why` they are told why they wait, which looks at agents and hosts.
pub(super) async fn insert<C: GenericClient>(
    client: &C,
    tasks: &[Identified<'_>],
    say_why: bool,
    journal: &mut Journal,
) -> Result<Inserted, StoreError> {
    let rows = Columns::of(tasks).insert(client, say_why).await?;
    let mut inserted = Inserted {
        tasks: Vec::with_capacity(rows.len()),
        places: Vec::new(),
        told: false,
        held: false,
    };
    for row in &rows {
        let place = usize::try_from(get::<i64>(row, "ord") - 1).unwrap_or(usize::MAX);
        let Some(task) = tasks.get(place) else { continue };
        let made = task.made(row)?;
        journal.note(|| Line {
            task_id: task.task_id.0,
            key: Some(task.key.clone()),
            event: EventType::Created.to_string(),
            status: Some(made.status.to_string()),
            attempt: Some(0),
            actor: task.actor.clone(),
            ..Line::default()
        });
        if made.status == Status::Created
            && let Some(lane_id) = get::<Option<i64>>(row, "lane_id")
        {
            let priority = get(row, "priority");
            inserted.places.push(ReadyPlace { lane_id, priority, seq: get(row, "seq") });
            inserted.held = get(row, "held");
        }
        inserted.tasks.push(made);
    }
    Ok(inserted)
}

/// Inserts all of them and commits, or answers `None` and has inserted nothing, because a key is in the way or they were made
/// by a try before.
pub(super) async fn insert_all(
    client: &mut Client,
    tasks: &[Identified<'_>],
    tell: &Tell<'_>,
    journal: &mut Journal,
) -> Result<Option<Inserted>, StoreError> {
    let inserted = match insert_and_commit(client, tasks, tell, journal).await {
        Err(error) if error.is_unique_violation("tasks_pkey") => return Ok(None),
        inserted => inserted?,
    };
    Ok((inserted.tasks.len() == tasks.len()).then_some(inserted))
}

async fn insert_and_commit(
    client: &mut Client,
    tasks: &[Identified<'_>],
    tell: &Tell<'_>,
    journal: &mut Journal,
) -> Result<Inserted, StoreError> {
    if tasks.iter().all(|task| task.task.key.is_none()) {
        // The commit goes along: nothing is in their way but all of themselves. The insert is one statement, so it may as well
        // be committed without the `begin`.
        INSERT_TASKS.prepare(client).await?;
        let tx = open(client);
        let inserting = async {
            let ((), mut inserted) =
                tokio::try_join!(biased; tx.begin_planned(), insert(&tx, tasks, true, journal))?;
            // While the commit waits for the disk.
            if let (true, [place]) = (inserted.held, inserted.places.as_slice()) {
                inserted.told = tell(*place);
            }
            Ok(inserted)
        };
        tx.commit_behind(inserting).await
    } else {
        let tx = begin_planned(client).await?;
        let inserted = insert(&tx, tasks, true, journal).await?;
        if inserted.tasks.len() == tasks.len() {
            commit(tx).await?;
        }
        Ok(inserted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_written_as_postgresql_reads_it() {
        let set = ["a b", "", "NULL", "{x,y}", "\"q\" \\"].map(str::to_owned);
        assert_eq!(literal(&set), r#"{"a b","","NULL","{x,y}","\"q\" \\"}"#);
        assert_eq!(literal(&[]), "{}");
    }
}
