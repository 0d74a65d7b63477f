//! One run, from the first process to the closing line.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    database::Database,
    faults::Fault,
    load::Load,
    long_run,
    options::Options,
    patroni::Patroni,
    postgres::Pair,
    reconcile::{Books, reconcile},
    recovery::{Leased, Recovered, longest_wait},
    report::{Recovery, Report},
    stage::Stage,
};

/// So many tasks are leased before anything is done to the fleet.
const LEASED: i64 = 20;
/// How long a run may go on after the last task was created: hosts have few slots, and a queue by then.
const LAST_WAIT: Duration = Duration::from_secs(180);
/// The pull agents keep up.
const NONE_WAITS: &str = "
select 1
 where not exists (select 1 from fleet.tasks t join fleet.lanes l on l.lane_id = t.lane_id
                    where t.status in ('created', 'scheduled') and l.capabilities = '{agent:pull}'
                      and t.created_at < now() - interval '1 s')";
/// Mean length of a run, in seconds.
const MEAN: f64 = 2.55;

/// Runs it.
pub(crate) async fn run(options: Options, dir: PathBuf) -> ExitCode {
    let mut report = Report::new(options);
    match drive(options, dir, &mut report).await {
        Ok(()) => {}
        Err(error) => report.failed(format!("the run could not go on: {error:#}")),
    }
    report.print();
    report.exit_code()
}

async fn drive(options: Options, dir: PathBuf, report: &mut Report) -> anyhow::Result<()> {
    println!("seed {}", options.seed);
    // Enough for the load with one worker dead and another frozen, and while slots are found by polling only.
    let slots = (options.rate * MEAN * 2.0).ceil();
    let database = if options.patroni {
        Database::Patroni(Patroni::start(&dir).await?)
    } else {
        Database::Pair(Pair::start(&dir.join("postgres")).await?)
    };
    let mut stage = Stage::start(&dir, database, slots as usize + 16).await?;
    let mut random = StdRng::seed_from_u64(options.seed);
    let load = Load::start(stage.balancer.url(), options.rate, options.seed);
    let long = long_run::kill_replica_in_the_middle(&mut stage, report).await?;
    let began = Instant::now();
    for round in 0.. {
        if round >= options.rounds && began.elapsed() >= options.length {
            break;
        }
        for fault in Fault::round(&stage.database, &mut random) {
            if round >= options.rounds && began.elapsed() >= options.length {
                break;
            }
            let pause = Duration::from_millis(random.random_range(0..2000));
            tokio::time::sleep(pause).await;
            one_fault(fault, &mut stage, &mut random, report).await?;
        }
    }
    let mut made = load.stop().await;
    made.push(long);
    until_all_have_ended(&mut stage).await;
    let books = Books::read(&mut stage).await?;
    reconcile(&books, &made, report);
    Ok(())
}

async fn one_fault(
    fault: Fault,
    stage: &mut Stage,
    random: &mut StdRng,
    report: &mut Report,
) -> anyhow::Result<()> {
    let sql = "select 1 from fleet.tasks where holder is not null having count(*) >= $1";
    stage.watch.until("enough tasks are leased", sql, &[&LEASED]).await?;
    if fault == Fault::CutListeners {
        // Else what waits for a slot, after the fault before, would count as waiting for a listener.
        stage.watch.until("no agent's task waits for a slot", NONE_WAITS, &[]).await?;
    }
    let leased = Leased::now(&mut stage.watch).await;
    let (blow, aftermath) = fault.inflict(stage, random).await?;
    let mut took = leased.recovered(&mut stage.watch, &blow).await;
    if fault == Fault::CutListeners {
        let wait = longest_wait(&mut stage.watch, leased.at).await;
        took = took.map(|recovered| Recovered { took: wait, ..recovered });
    }
    report.recovery(Recovery { fault, leased: leased.count(), took });
    aftermath.mend(stage, report).await
}

/// Waits until no task is left, at most so long.
async fn until_all_have_ended(stage: &mut Stage) {
    let until = Instant::now() + LAST_WAIT;
    let sql = "select count(*) from fleet.tasks
                where status not in ('completed', 'failed', 'agent_lost', 'cancelled')";
    while stage.watch.count(sql).await > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
