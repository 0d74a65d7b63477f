//! `webhook`: signed deliveries, each of an issue of its own that has just been opened; against raw SQL clients that
//! insert the same rows, one delivery a commit.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    floor,
    http::Connection,
    report::{Bound, Figure, Report},
    stage::{Fleet, Stage},
};
use crate::{
    cli::dev::forge::{Issue, sign},
    config::Secret,
};

const NAME: &str = "webhook";
/// Deliveries under way at once.
const CONNECTIONS: usize = 32;
const PART_OF_RAW: f64 = 0.5;

/// A request, made beforehand: a forge's work is not measured.
struct Delivery {
    id: String,
    signature: String,
    body: String,
}

#[derive(Deserialize)]
struct Accepted<'a> {
    result: &'a str,
}

pub(super) async fn run(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let fleet = stage.fleet(NAME).await?;
    let secret = fleet.webhook_secret().context(
        "webhook: the secret of somebody else's coordinator is not the bench's to know; leave this scenario out",
    )?;
    let deliveries = if stage.quick { 64 } else { 12_800 };
    let (mut raw, mut rates) = (Vec::new(), Vec::new());
    for round in 0..stage.rounds {
        if let Some(database) = &fleet.database {
            raw.push(floor::webhook(stage, database, deliveries).await?);
        }
        let first = 1 + round * deliveries;
        let made = (first..first + deliveries).map(|number| deliver(&fleet, &secret, number));
        rates.push(measure(&fleet, made.collect()).await?);
    }
    fleet.close().await?;
    let what = "raw insert of the same rows, one delivery a commit, best of 8 and 32 clients";
    report.add(Figure::new(NAME, what, &raw, "deliveries/s"));
    let what = format!("{CONNECTIONS} deliveries under way");
    let figure = Figure::new(NAME, what, &rates, "deliveries/s");
    report.add(figure.against("raw insert", &raw).wanted(Bound::AtLeast(PART_OF_RAW)));
    Ok(())
}

fn deliver(fleet: &Fleet<'_>, secret: &Secret, number: usize) -> Delivery {
    let issue = Issue {
        number: i64::try_from(number).unwrap_or(i64::MAX),
        title: "An issue of the bench",
        body: &"b".repeat(500),
        label: &fleet.capability,
    };
    let body = issue.payload(Timestamp::now()).to_string();
    Delivery { id: Uuid::now_v7().to_string(), signature: sign(secret, body.as_bytes()), body }
}

async fn measure(fleet: &Fleet<'_>, deliveries: Vec<Delivery>) -> anyhow::Result<f64> {
    fleet.stage().progress.begin("delivering issues");
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS {
        connections.push(Connection::open(fleet.address(number), None).await?);
    }
    let share = deliveries.len() / CONNECTIONS;
    let delivering = connections.iter_mut().zip(deliveries.chunks(share)).map(send);
    let began = Instant::now();
    try_join_all(delivering).await?;
    Ok((share * CONNECTIONS) as f64 / began.elapsed().as_secs_f64())
}

async fn send((connection, deliveries): (&mut Connection, &[Delivery])) -> anyhow::Result<()> {
    for Delivery { id, signature, body } in deliveries {
        let headers = [
            ("x-forgejo-event", "issues"),
            ("x-forgejo-event-type", "issues"),
            ("x-forgejo-delivery", id.as_str()),
            ("x-forgejo-signature", signature.as_str()),
        ];
        let path = "/api/v1/webhooks/forgejo";
        let reply = connection.call("POST", path, &headers, body.as_bytes()).await?;
        let accepted: Accepted<'_> = reply.expect(202)?;
        ensure!(
            accepted.result == "created",
            "a delivery was {} instead of created",
            accepted.result
        );
    }
    Ok(())
}
