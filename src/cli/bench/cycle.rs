//! `cycle`: agents that take one task at a time, complete it and take the next; against raw SQL clients.

use super::{
    floor, load,
    report::{Bound, Figure, Report},
    stage::{Fleet, Stage},
    usage::Usage,
};

const NAME: &str = "cycle";
/// A stretch lasts about so long, in seconds.
const STRETCH: f64 = 8.0;
/// Agents and coordinators; what is wanted of each, against the first one.
const VARIANTS: [(usize, usize, Option<f64>); 4] =
    [(64, 1, None), (512, 1, Some(0.9)), (64, 4, Some(0.5)), (512, 4, Some(0.9))];
/// What is wanted of the first one, against the floor.
const TIMES_FLOOR: f64 = 2.5;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut fleet = stage.fleet(NAME).await?;
    let mut floors = Vec::new();
    let mut rates: [Vec<f64>; VARIANTS.len()] = Default::default();
    let mut costs: [Vec<f64>; 3] = Default::default();
    let mut tasks = 0;
    for _ in 0..stage.rounds {
        if let Some(database) = &fleet.database {
            floors.push(floor::cycles(stage, database).await?);
        }
        for (place, (agents, replicas, _)) in VARIANTS.into_iter().enumerate() {
            if replicas > fleet.most() {
                continue;
            }
            fleet.scale(replicas).await?;
            let agents = if stage.quick { agents / 16 } else { agents };
            // As many tasks as the last round says, else a short stretch that warms up and tells.
            let known = match rates[place].last() {
                Some(rate) => *rate,
                None => {
                    measure(&fleet, agents, if stage.quick { 60 } else { 4_000 }, &mut tasks)
                        .await?
                }
            };
            let length = if stage.quick { 60 } else { tasks_in(known, STRETCH) };
            let before = Usage::read(&fleet);
            rates[place].push(measure(&fleet, agents, length, &mut tasks).await?);
            if place == 0
                && let (Some(before), Some(after)) = (before, Usage::read(&fleet))
            {
                for (cost, rounds) in after.each(&before, length).into_iter().zip(&mut costs) {
                    rounds.push(cost);
                }
            }
        }
    }
    load::reconcile(&fleet, tasks).await?;
    fleet.close().await?;
    add(report, &floors, &rates);
    for (whose, rounds) in ["load", "coordinator", "database"].into_iter().zip(&costs) {
        if !rounds.is_empty() {
            let what = format!("processor time of the {whose} a cycle, creation included");
            report.add(Figure::new(NAME, what, rounds, "µs"));
        }
    }
    Ok(())
}

async fn measure(
    fleet: &Fleet<'_>,
    agents: usize,
    tasks: usize,
    all: &mut usize,
) -> anyhow::Result<f64> {
    load::create_tasks(fleet, tasks).await?;
    load::settle(fleet).await?;
    // Last: they do not beat, so a long preparation would end their sessions.
    let agents = load::register(fleet, agents, 1).await?;
    *all += tasks;
    load::drain(fleet, agents, 1, tasks).await
}

/// How many tasks keep a fleet of this rate busy for so long.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count within bounds"
)]
fn tasks_in(rate: f64, seconds: f64) -> usize {
    (rate * seconds).clamp(4_000.0, 300_000.0) as usize
}

fn add(report: &mut Report, floors: &[f64], rates: &[Vec<f64>; VARIANTS.len()]) {
    let unit = "cycles/s";
    if !floors.is_empty() {
        report.add(Figure::new(
            NAME,
            "SQL floor, pgbench -M prepared, best of 8 and 32 clients",
            floors,
            unit,
        ));
    }
    for ((agents, replicas, wanted), rates_here) in VARIANTS.into_iter().zip(rates) {
        if rates_here.is_empty() {
            continue;
        }
        let what =
            format!("{agents} agents, {replicas} replica{}", if replicas == 1 { "" } else { "s" });
        let figure = Figure::new(NAME, what, rates_here, unit);
        report.add(match wanted {
            Some(part) => {
                figure.against("64 agents, 1 replica", &rates[0]).wanted(Bound::AtLeast(part))
            }
            None if floors.is_empty() => figure,
            None => figure.against("SQL floor", floors).wanted(Bound::AtLeast(TIMES_FLOOR)),
        });
    }
}
