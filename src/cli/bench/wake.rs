//! `wake`: idle agents that wait in a long poll, tasks at a steady rate, and how long after the creation of a task an
//! agent has it.
//!
//! The time is counted from the commit of the creating transaction, as the database keeps it (`track_commit_timestamp`): from
//! the writing of the commit's record, before it is on disk and before the replica is told. Beside it, from the sending of
//! the request. Both clocks are this machine's; at somebody else's coordinator the database cannot be asked, and there is
//! only the latter.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    agent::{Agent, Claim, POLL},
    load,
    report::{Bound, Figure, Report, quantile},
    stage::{Fleet, Stage},
};

const NAME: &str = "wake";
const AGENTS: usize = 64;
/// Between two tasks: 100 a second.
const EVERY: Duration = Duration::from_millis(10);
const P50: f64 = 2.0;
const P99: f64 = 10.0;

/// A task that has been taken, and when.
#[derive(Debug)]
struct Woken {
    number: usize,
    task_id: Uuid,
    at: (Timestamp, Instant),
}

/// What a reply to dequeue tells.
#[derive(Deserialize)]
struct Dequeued {
    task_id: Uuid,
    lease: i64,
    title: String,
}

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut fleet = stage.fleet(NAME).await?;
    let mut all = 0;
    for (replicas, which) in [(1, "the same replica"), (2, "another replica")] {
        if replicas > fleet.most() {
            continue;
        }
        fleet.scale(replicas).await?;
        let [mut p50, mut p99, mut sent] = [const { Vec::new() }; 3];
        for _ in 0..stage.rounds {
            let tasks = if stage.quick { 50 } else { 2_000 };
            let (waited, since_sent) = measure(&fleet, replicas - 1, tasks).await?;
            if !waited.is_empty() {
                p50.push(quantile(&waited, 0.5));
                p99.push(quantile(&waited, 0.99));
            }
            sent.push(quantile(&since_sent, 0.5));
            all += tasks;
        }
        if !p50.is_empty() {
            let figure = |part: &str, rounds: &[f64], most| {
                let what = format!("{part} from the create's commit to the agent, at {which}");
                Figure::new(NAME, what, rounds, "ms").wanted(Bound::AtMost(most))
            };
            report.add(figure("p50", &p50, P50));
            report.add(figure("p99", &p99, P99));
        }
        let what = format!("p50 from sending the request, at {which}");
        report.add(Figure::new(NAME, what, &sent, "ms"));
    }
    load::reconcile(&fleet, all).await?;
    fleet.close().await
}

/// Milliseconds from the commit, where the database can be asked, and from the sending of the request. The agents wait at the coordinator `at`, the
/// tasks are created at the first one.
async fn measure(
    fleet: &Fleet<'_>,
    at: usize,
    tasks: usize,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let agents = load::recruit(fleet, AGENTS, 1, Some(at), &fleet.capability).await?;
    load::settle(fleet).await?;
    let received = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let mut waiting = JoinSet::new();
    for agent in agents {
        waiting.spawn(wait(agent, Arc::clone(&received), stop.clone()));
    }
    // All of them are in their polls before the first task comes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sent = create(fleet, tasks).await?;
    while received.load(Ordering::Relaxed) < tasks {
        tokio::time::sleep(EVERY).await;
        if let Some(ended) = waiting.try_join_next() {
            ended??;
        }
    }
    stop.cancel();
    let (mut agents, mut woken) = (Vec::new(), Vec::new());
    while let Some(ended) = waiting.join_next().await {
        let (agent, own) = ended??;
        agents.push(agent);
        woken.extend(own);
    }
    ensure!(woken.len() == tasks, "{} tasks arrived of {tasks}", woken.len());
    let since = |woken: &Woken| woken.at.1.duration_since(sent[woken.number]).as_secs_f64() * 1e3;
    let since_sent = woken.iter().map(since).collect();
    let mut waited = Vec::new();
    if let Some(database) = &fleet.database {
        let capability = [("capability", fleet.capability.as_str())];
        let commits: HashMap<Uuid, i64> =
            database.run(include_str!("sql/commits.sql"), &capability).await?;
        for Woken { task_id, at, .. } in &woken {
            let commit = commits.get(task_id).context("a task without a commit")?;
            waited.push((at.0.as_microsecond() - commit) as f64 / 1e3);
        }
    }
    load::deregister(agents).await?;
    Ok((waited, since_sent))
}

/// Creates tasks one by one at a steady rate; when each was sent.
async fn create(fleet: &Fleet<'_>, tasks: usize) -> anyhow::Result<Vec<Instant>> {
    let mut connection = fleet.admin(0).await?;
    let mut tick = tokio::time::interval(EVERY);
    let mut sent = Vec::with_capacity(tasks);
    for number in 0..tasks {
        let body = json!({"title": number.to_string(), "labels": [fleet.capability]}).to_string();
        tick.tick().await;
        sent.push(Instant::now());
        let reply = connection.post("/api/v1/tasks", body.as_bytes()).await?;
        reply.expect::<serde::de::IgnoredAny>(201)?;
        fleet.stage().progress.at("tasks at 100/s", number, tasks);
    }
    Ok(sent)
}

/// One agent: waits, notes when it was given what, completes it, and waits again.
async fn wait(
    mut agent: Agent,
    received: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> anyhow::Result<(Agent, Vec<Woken>)> {
    let mut woken = Vec::new();
    loop {
        let dequeued: Option<Dequeued> = tokio::select! {
            dequeued = agent.dequeue(POLL) => dequeued?,
            () = stop.cancelled() => break,
        };
        let at = (Timestamp::now(), Instant::now());
        let Some(Dequeued { task_id, lease, title }) = dequeued else { continue };
        woken.push(Woken { number: title.parse()?, task_id, at });
        agent.complete(&Claim { task_id, lease }).await?;
        received.fetch_add(1, Ordering::Relaxed);
    }
    agent.reconnect().await?;
    Ok((agent, woken))
}
