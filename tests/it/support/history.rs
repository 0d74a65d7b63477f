//! What holds of every history, whatever was done to the fleet.

use agent_fleet::model::{EventType, Status, may};
use tokio_postgres::{Client, Error};

/// Says what is broken: each transition is in the one table, leases only grow and are never held by two, and each task
/// stands where its last event left it.
pub(crate) async fn check(client: &Client) -> Result<Vec<String>, Error> {
    let mut broken = Vec::new();
    let rows = client
        .query("select distinct type, from_status, to_status from fleet.task_events", &[])
        .await?;
    for row in rows {
        let word = |column: &str| row.get::<_, Option<String>>(column);
        let status = |column: &str| -> Option<Status> { word(column).map(|s| s.parse().unwrap()) };
        let event: EventType = word("type").unwrap().parse().unwrap();
        if let Some(to) = status("to_status") {
            let from = status("from_status");
            if !may(from, to, event) {
                broken.push(format!("{from:?} -> {to} by {event} is in no table"));
            }
        }
    }
    for (what, sql) in COUNTS {
        let count: i64 = client.query_one(*sql, &[]).await?.get(0);
        if count > 0 {
            broken.push(format!("{what}: {count}"));
        }
    }
    Ok(broken)
}

/// What must not be there, and the statement that counts it.
const COUNTS: &[(&str, &str)] = &[
    (
        "tasks that stand elsewhere than their last event left them",
        "select count(*) from fleet.tasks t
          where t.status is distinct from
                (select e.to_status from fleet.task_events e
                  where e.task_id = t.task_id and e.to_status is not null order by e.event_id desc limit 1)",
    ),
    (
        "leases that were given out twice",
        "select count(*) from (select 1 from fleet.task_events where type in ('claimed', 'taken_over')
                                group by task_id, lease having count(*) > 1) x",
    ),
    (
        "tasks that wait and are held",
        "select count(*) from fleet.tasks where holder is not null and status in ('created', 'scheduled')",
    ),
];
