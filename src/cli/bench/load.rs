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

use super::{agent::Agent, http::Connection, stage::Fleet};

/// Tasks in one array.
pub(super) const ARRAY: usize = 500;
/// So many tasks wait while [`feed`] creates them.
pub(super) const LEAD: usize = 10 * ARRAY;
/// Bytes of a task's body.
const BODY: usize = 500;
/// Registrations under way at once.
const REGISTRATIONS: usize = 8;
/// However slow it is, a stretch ends after this.
const LIMIT: Duration = Duration::from_secs(1_800);

/// The body of `POST /api/v1/tasks` for so many tasks that require `capability`.
pub(super) fn array(capability: &str, tasks: usize) -> Vec<u8> {
    let task =
        json!({"title": "A task of the bench", "body": "b".repeat(BODY), "labels": [capability]});
    serde_json::Value::Array(vec![task; tasks]).to_string().into_bytes()
}

/// Creates an array of tasks, see [`array()`], all or none.
pub(super) async fn create_array(
    connection: &mut Connection,
    array: &[u8],
    tasks: usize,
) -> anyhow::Result<()> {
    let created: Vec<IgnoredAny> = connection.post("/api/v1/tasks", array).await?.expect(201)?;
    ensure!(created.len() == tasks, "{} tasks were made of {tasks}", created.len());
    Ok(())
}

/// Creates so many tasks, in arrays.
pub(super) async fn create_tasks(fleet: &Fleet<'_>, tasks: usize) -> anyhow::Result<()> {
    let what = format!("creating {tasks} tasks");
    let mut connection = fleet.admin(0).await?;
    let mut made = 0;
    while made < tasks {
        let now = ARRAY.min(tasks - made);
        create_array(&mut connection, &array(&fleet.capability, now), now).await?;
        made += now;
        fleet.stage().progress.at(&what, made, tasks);
    }
    Ok(())
}

/// Registers so many agents for the tasks of this scenario, in turns over the coordinators.
pub(super) async fn register(
    fleet: &Fleet<'_>,
    agents: usize,
    slots: usize,
) -> anyhow::Result<Vec<Agent>> {
    recruit(fleet, agents, slots, None, &fleet.capability).await
}

/// The same for agents of another capability, or all at one coordinator.
pub(super) async fn recruit(
    fleet: &Fleet<'_>,
    agents: usize,
    slots: usize,
    at: Option<usize>,
    capability: &str,
) -> anyhow::Result<Vec<Agent>> {
    fleet.stage().progress.begin(&format!("registering {agents} agents"));
    let registering = (0..agents).map(|number| {
        let address = fleet.address(at.unwrap_or(number));
        Agent::register(address, fleet.token(), fleet.name_agent(), capability, slots)
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

/// What is counted while agents work.
#[derive(Debug)]
pub(super) struct Tally {
    /// How many tasks there are to do; `usize::MAX` while that is not known yet.
    tasks: AtomicUsize,
    done: AtomicUsize,
    /// When so many were done, in rising order.
    marks: Vec<(usize, OnceLock<Instant>)>,
}

impl Tally {
    /// With the counts whose moments are wanted, in rising order.
    pub(super) fn new(tasks: usize, marks: impl IntoIterator<Item = usize>) -> Self {
        let marks = marks.into_iter().map(|count| (count, OnceLock::new())).collect();
        Self { tasks: AtomicUsize::new(tasks), done: AtomicUsize::new(0), marks }
    }

    fn count(&self, more: usize) {
        let before = self.done.fetch_add(more, Ordering::Relaxed);
        for (count, moment) in &self.marks {
            if (before + 1..=before + more).contains(count) {
                let _ = moment.set(Instant::now());
            }
        }
    }

    /// How many are done.
    pub(super) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    fn tasks(&self) -> usize {
        self.tasks.load(Ordering::Relaxed)
    }

    fn is_finished(&self) -> bool {
        self.done() >= self.tasks()
    }

    /// Tasks a second from each mark to the next.
    pub(super) fn rates(&self) -> Vec<f64> {
        let rate = |pair: &[(usize, OnceLock<Instant>)]| {
            let took = pair[1].1.get()?.duration_since(*pair[0].1.get()?);
            Some((pair[1].0 - pair[0].0) as f64 / took.as_secs_f64())
        };
        self.marks.windows(2).filter_map(rate).collect()
    }
}

/// Agents at work, and what they have completed.
#[derive(Debug)]
pub(super) struct Crew {
    tally: Arc<Tally>,
    working: JoinSet<anyhow::Result<(Agent, Vec<Uuid>)>>,
}

impl Crew {
    /// Sets agents to work: each takes `batch` tasks at a time, completes them and takes the next, until all of the
    /// tally's are done.
    pub(super) fn set_to_work(agents: Vec<Agent>, batch: usize, tally: &Arc<Tally>) -> Self {
        let mut working = JoinSet::new();
        for agent in agents {
            working.spawn(work(agent, batch, Arc::clone(tally)));
        }
        Self { tally: Arc::clone(tally), working }
    }

    /// Waits until all is done; each task once. The agents are taken out.
    pub(super) async fn finish(self, fleet: &Fleet<'_>) -> anyhow::Result<()> {
        let Self { tally, mut working } = self;
        let what = format!("{} agents at work", working.len());
        let mut completed: Vec<Uuid> = Vec::new();
        let mut agents = Vec::new();
        let finishing = async {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            loop {
                tokio::select! {
                    ended = working.join_next() => {
                        let Some(ended) = ended else { return anyhow::Ok(()) };
                        let (agent, own) = ended??;
                        completed.extend(own);
                        agents.push(agent);
                    }
                    _ = tick.tick() => fleet.stage().progress.at(&what, tally.done(), tally.tasks()),
                }
            }
        };
        let finished = tokio::time::timeout(LIMIT, finishing).await;
        finished.with_context(|| format!("{} tasks were done, and no more", tally.done()))??;
        completed.sort_unstable();
        completed.dedup();
        let (distinct, tasks) = (completed.len(), tally.tasks());
        ensure!(distinct == tasks, "{distinct} distinct tasks were completed of {tasks}");
        deregister(agents).await
    }
}

/// One agent's work.
async fn work(
    mut agent: Agent,
    batch: usize,
    tally: Arc<Tally>,
) -> anyhow::Result<(Agent, Vec<Uuid>)> {
    let mut completed = Vec::new();
    if batch > 1 {
        while !tally.is_finished() {
            let claims = agent.dequeue_many(batch).await?;
            agent.complete_many(&claims).await?;
            completed.extend(claims.iter().map(|claim| claim.task_id));
            tally.count(claims.len());
        }
        return Ok((agent, completed));
    }
    let mut claim = None;
    while !tally.is_finished() {
        claim = match claim {
            // At the end others still hold the last tasks; what they lose comes back.
            None => agent.dequeue(1).await?,
            Some(held) => {
                let next = agent.cycle(&held).await?;
                completed.push(held.task_id);
                tally.count(1);
                next
            }
        };
    }
    if let Some(claim) = claim {
        bail!("the task {} was handed out although all were done", claim.task_id);
    }
    Ok((agent, completed))
}

/// Lets the agents do all `tasks` that wait. Tasks a second, without the first tenth and the last twentieth: agents
/// begin and run dry there.
pub(super) async fn drain(
    fleet: &Fleet<'_>,
    agents: Vec<Agent>,
    batch: usize,
    tasks: usize,
) -> anyhow::Result<f64> {
    let tally = Arc::new(Tally::new(tasks, [tasks / 10, tasks - tasks / 20]));
    Crew::set_to_work(agents, batch, &tally).finish(fleet).await?;
    tally.rates().first().copied().context("too few tasks to measure")
}

/// Creates tasks while agents do them, so that some always wait and never many; ends when `tasks` have been made, or
/// when `enough` says so, and sets the tally's number.
pub(super) async fn feed(
    mut connection: Connection,
    capability: String,
    tally: Arc<Tally>,
    tasks: usize,
    enough: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    let array = array(&capability, ARRAY);
    let mut made = 0;
    while made < tasks && !enough.is_cancelled() {
        if made >= tally.done() + LEAD {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        create_array(&mut connection, &array, ARRAY).await?;
        made += ARRAY;
    }
    tally.tasks.store(made, Ordering::Relaxed);
    Ok(())
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
