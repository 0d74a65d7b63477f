//! `stuck`: 2,000 clients that never finish their headers, never finish their bodies, or never read the answer to their
//! poll; and a well-behaved agent among them.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    http::Address,
    load,
    report::{Bound, Figure, Report, quantile},
    stage::Stage,
};

const NAME: &str = "stuck";
const P50: f64 = 50.0;

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (clients, claims) = if stage.quick { (60, 20) } else { (2_000, 500) };
    let fleet = stage.fleet(NAME).await?;
    let address = fleet.address(0).clone();
    // Agents that nothing is for: they offer no capability that any task requires.
    let pollers = load::recruit(&fleet, clients / 3 + 1, 1, None, "agent:nothing").await?;
    let mut polls = pollers.iter();
    let mut stuck = JoinSet::new();
    for number in 0..clients {
        let begun = match number % 3 {
            0 => b"POST /api/v1/tasks/dequeue HTTP/1.1\r\nhost: x\r\nx-slow: ".to_vec(),
            1 => b"POST /api/v1/tasks/dequeue HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                   content-length: 1000\r\n\r\n{\"agent_id\":"
                .to_vec(),
            _ => polls.next().context("too few agents to poll")?.poll_request(),
        };
        let reads = number % 3 < 2;
        stuck.spawn(stick(address.connect().await?, address.clone(), begun, reads));
    }
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..stage.rounds {
        let mut agents = load::register(&fleet, 1, 1).await?;
        let agent = agents.first_mut().context("no agent")?;
        load::create_tasks(&fleet, claims).await?;
        fleet.stage().progress.begin("claiming among stuck clients");
        let mut took = Vec::with_capacity(claims);
        for _ in 0..claims {
            let asked = Instant::now();
            let claim = agent.dequeue(0).await?.context("there was no task although many wait")?;
            took.push(asked.elapsed().as_secs_f64() * 1e3);
            agent.complete(&claim).await?;
        }
        load::deregister(agents).await?;
        p50.push(quantile(&took, 0.5));
        p99.push(quantile(&took, 0.99));
    }
    load::reconcile(&fleet, claims * stage.rounds).await?;
    drop(stuck);
    fleet.close().await?;
    let what = format!("p50 of a dequeue among {clients} stuck clients");
    report.add(Figure::new(NAME, what, &p50, "ms").wanted(Bound::AtMost(P50)));
    report.add(Figure::new(NAME, "p99 of the same", &p99, "ms"));
    Ok(())
}

/// A client that begins and does not go on; when it is thrown out it comes again.
async fn stick(mut stream: TcpStream, address: Address, begun: Vec<u8>, reads: bool) {
    loop {
        // Whether it was thrown out already shows when it reads.
        let _ = stream.write_all(&begun).await;
        if !reads {
            std::future::pending::<()>().await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Ok(again) = address.connect().await else { return };
        stream = again;
    }
}
