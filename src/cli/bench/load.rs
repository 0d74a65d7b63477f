//! What all scenarios do: create tasks, register agents, let agents empty the queue, and count.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{agent::Agent, stage::Fleet};

/// Tasks in one array.
pub(super) const ARRAY: usize = 500;
/// Bytes of a task's body.
pub(super) const BODY: usize = 500;
/// Registrations under way at once.
const REGISTRATIONS: usize = 8;
/// However slow it is, a stretch ends after this.
const LIMIT: Duration = Duration::from_secs(900);

/// The body of `POST /api/v1/tasks` for so many tasks that require `capability`.
pub(super) fn array(capability: &str, tasks: usize) -> Vec<u8> {
    let task =
        json!({"title": "A task of the bench", "body": "b".repeat(BODY), "labels": [capability]});
    serde_json::Value::Array(vec![task; tasks]).to_string().into_bytes()
}

/// Creates so many tasks, in arrays.
pub(super) async fn create_tasks(fleet: &Fleet<'_>, tasks: usize) -> anyhow::Result<()> {
    let what = format!("creating {tasks} tasks");
    let mut connection = fleet.admin(0).await?;
    let mut made = 0;
    while made < tasks {
        let now = ARRAY.min(tasks - made);
        let reply = connection.post("/api/v1/tasks", &array(&fleet.capability, now)).await?;
        let created: Vec<IgnoredAny> = reply.expect(201)?;
        ensure!(created.len() == now, "{} tasks were made of {now}", created.len());
        made += now;
        fleet.stage().progress.at(&what, made, tasks);
    }
    Ok(())
}

/// Registers so many agents, in turns over the coordinators.
pub(super) async fn register(
    fleet: &Fleet<'_>,
    agents: usize,
    slots: usize,
) -> anyhow::Result<Vec<Agent>> {
    fleet.stage().progress.begin(&format!("registering {agents} agents"));
    let registering = (0..agents).map(|number| {
        Agent::register(
            fleet.address(number),
            fleet.token(),
            fleet.name_agent(),
            &fleet.capability,
            slots,
        )
    });
    stream::iter(registering).buffer_unordered(REGISTRATIONS).try_collect().await
}

/// Takes agents out.
pub(super) async fn deregister(agents: Vec<Agent>) -> anyhow::Result<()> {
    stream::iter(agents)
        .map(|mut agent| async move { agent.deregister().await })
        .buffer_unordered(REGISTRATIONS)
        .try_collect()
        .await
}

/// What is counted while agents empty a queue of a known length. The first tenth and the last twentieth are not
/// measured: agents begin and run dry there.
#[derive(Debug)]
struct Tally {
    tasks: usize,
    done: AtomicUsize,
    begun: OnceLock<Instant>,
    ended: OnceLock<Instant>,
}

impl Tally {
    fn new(tasks: usize) -> Self {
        Self { tasks, done: AtomicUsize::new(0), begun: OnceLock::new(), ended: OnceLock::new() }
    }

    const fn first(&self) -> usize {
        self.tasks / 10
    }

    const fn last(&self) -> usize {
        self.tasks - self.tasks / 20
    }

    fn count(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if done == self.first() {
            let _ = self.begun.set(Instant::now());
        }
        if done == self.last() {
            let _ = self.ended.set(Instant::now());
        }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    fn rate(&self) -> Option<f64> {
        let took = self.ended.get()?.duration_since(*self.begun.get()?);
        Some((self.last() - self.first()) as f64 / took.as_secs_f64())
    }
}

/// Lets the agents take and complete all `tasks` that wait, one at a time each. Cycles a second.
pub(super) async fn drain(
    fleet: &Fleet<'_>,
    agents: Vec<Agent>,
    tasks: usize,
) -> anyhow::Result<f64> {
    let what = format!("{} agents on {tasks} tasks", agents.len());
    let tally = Arc::new(Tally::new(tasks));
    let mut working = JoinSet::new();
    for agent in agents {
        working.spawn(work(agent, Arc::clone(&tally)));
    }
    let mut completed: Vec<Uuid> = Vec::with_capacity(tasks);
    let mut agents = Vec::new();
    let draining = async {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                ended = working.join_next() => {
                    let Some(ended) = ended else { return anyhow::Ok(()) };
                    let (agent, own) = ended??;
                    completed.extend(own);
                    agents.push(agent);
                }
                _ = tick.tick() => fleet.stage().progress.at(&what, tally.done(), tasks),
            }
        }
    };
    let drained = tokio::time::timeout(LIMIT, draining).await;
    drained.with_context(|| {
        format!("{} of {tasks} tasks were done in {} s", tally.done(), LIMIT.as_secs())
    })??;
    completed.sort_unstable();
    completed.dedup();
    ensure!(
        completed.len() == tasks,
        "{} distinct tasks were completed of {tasks}",
        completed.len()
    );
    deregister(agents).await?;
    tally.rate().context("too few tasks to measure")
}

/// One agent's work, until all tasks are done.
async fn work(mut agent: Agent, tally: Arc<Tally>) -> anyhow::Result<(Agent, Vec<Uuid>)> {
    let mut completed = Vec::new();
    let mut claim = None;
    while tally.done() < tally.tasks {
        claim = match claim {
            // At the end others still hold the last tasks; what they lose comes back.
            None => agent.dequeue(1).await?,
            Some(held) => {
                let next = agent.cycle(&held).await?;
                completed.push(held.task_id);
                tally.count();
                next
            }
        };
    }
    if let Some(claim) = claim {
        bail!("the task {} was handed out although all were done", claim.task_id);
    }
    Ok((agent, completed))
}

/// What the database says of the tasks of a scenario.
#[derive(Debug, Deserialize)]
struct Reconciled {
    tasks: usize,
    completed: usize,
    claims: usize,
    completions: usize,
    receipts: usize,
}

/// Counts in the database, when it is the bench's own: so many tasks, each claimed and completed exactly once.
pub(super) async fn reconcile(fleet: &Fleet<'_>, tasks: usize) -> anyhow::Result<()> {
    let Some(database) = &fleet.database else { return Ok(()) };
    fleet.stage().progress.begin("counting in the database");
    let variables = [("capability", fleet.capability.as_str())];
    let found: Reconciled = database.run(include_str!("sql/reconcile.sql"), &variables).await?;
    let Reconciled { tasks: made, completed, claims, completions, receipts } = found;
    if [made, completed, claims, completions, receipts].iter().any(|count| *count != tasks) {
        bail!("{tasks} tasks were made and completed, but the database has: {found:?}");
    }
    Ok(())
}

/// Before a stretch that is measured, see `sql/settle.sql`.
pub(super) async fn settle(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    match &fleet.database {
        Some(database) => {
            database.run::<IgnoredAny>(include_str!("sql/settle.sql"), &[]).await.map(drop)
        }
        None => Ok(()),
    }
}
