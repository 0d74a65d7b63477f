//! What is the case now, for the page that Prometheus reads. Three statements a scrape, on the replica that is asked.

use super::Replica;
use crate::{
    metrics::Gauges,
    store::{StoreError, TaskCount},
    telemetry::error_chain,
};

/// Lanes that are shown by name; the others are summed up.
const LANES: usize = 20;

/// Reads everything. While the database is away, what only it knows is left out, and `database_up` is 0.
pub(crate) async fn read(replica: &Replica) -> Gauges {
    let mut gauges = Gauges::new();
    own(replica, &mut gauges);
    let read = fleet(replica, &mut gauges).await;
    gauges.set("database_up", "Whether the database answered this scrape", f64::from(read.is_ok()));
    if let Err(error) = read {
        tracing::warn!(error = %error_chain(&error), "the fleet could not be counted");
    }
    gauges
}

/// What this replica knows of itself.
fn own(replica: &Replica, gauges: &mut Gauges) {
    let listening = f64::from(replica.listening().is_ok());
    gauges.set("listener_up", "Whether notifications arrive; else this replica polls", listening);
    let draining = f64::from(replica.shutdown.is_triggered());
    gauges.set("draining", "Whether this replica is stopping", draining);
    let waiting = replica.matchmaker.waiting() as f64;
    gauges.set("waiting_polls", "Agents that wait here for a task", waiting);
    let runs = replica.in_hand.count() as f64;
    gauges.set("runs", "Runs on hosts that this replica starts or follows", runs);
    let pool = replica.store.pool_status();
    let states = [("max", pool.max_size), ("open", pool.size), ("free", pool.available)]
        .into_iter()
        .chain([("awaited", pool.waiting)])
        .map(|(state, n)| ([("state", state.to_owned())], n as f64));
    gauges.set_each(
        "pool_connections",
        "The pool: allowed, open, free, awaited by callers",
        states,
    );
    let hosts = replica
        .hosts
        .online()
        .into_iter()
        .map(|(host_id, online)| ([("host_id", host_id)], f64::from(online)));
    gauges.set_each("host_up", "Whether this replica reaches the host", hosts);
}

/// What the database knows of all.
async fn fleet(replica: &Replica, gauges: &mut Gauges) -> Result<(), StoreError> {
    let writable = f64::from(replica.store.ping().await?);
    gauges.set(
        "database_writable",
        "Whether the database takes writes: no standby, not made read-only",
        writable,
    );
    let counts = replica.store.count_tasks().await?;
    let workers = replica.store.count_workers().await?;
    gauges.set("agents", "Agents whose session lives", workers.agents as f64);
    gauges.set("replicas", "Replicas whose session lives", workers.replicas as f64);
    let oldest = workers.oldest_transaction_secs;
    gauges.set("oldest_transaction_seconds", "Age of what holds back vacuum", oldest);
    let queue = workers.notify_queue;
    gauges.set("notify_queue_ratio", "How full PostgreSQL's queue of notifications is", queue);
    tasks(&counts, gauges);
    Ok(())
}

fn tasks(counts: &[TaskCount], gauges: &mut Gauges) {
    let mut by_status = std::collections::BTreeMap::new();
    let mut by_lane = std::collections::BTreeMap::new();
    for count in counts {
        let (status, mode) = (count.status.as_str(), count.execution_mode.as_str());
        *by_status.entry((status, mode)).or_insert(0.0) += count.tasks as f64;
        if count.status == crate::model::Status::Created {
            let lane: &mut (f64, f64) = by_lane.entry(count.capabilities.as_slice()).or_default();
            lane.0 += count.tasks as f64;
            lane.1 = lane.1.max(count.oldest_secs);
        }
    }
    let by_status = by_status.into_iter().map(|((status, mode), tasks)| {
        ([("status", status.to_owned()), ("mode", mode.to_owned())], tasks)
    });
    gauges.set_each("tasks", "Unended tasks, by status and mode", by_status);

    let mut lanes: Vec<(String, (f64, f64))> =
        by_lane.into_iter().map(|(names, lane)| (name_of(names), lane)).collect();
    lanes.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    if lanes.len() > LANES {
        let rest = lanes.split_off(LANES - 1).into_iter().map(|(_, lane)| lane);
        let sum = rest.fold((0.0, 0.0_f64), |sum, lane| (sum.0 + lane.0, sum.1.max(lane.1)));
        lanes.push(("others".to_owned(), sum));
    }
    let waiting = lanes.iter().map(|(name, lane)| ([("lane", name.clone())], lane.0));
    gauges.set_each("lane_waiting", "Tasks that are ready, by what they require", waiting);
    let oldest = lanes.iter().map(|(name, lane)| ([("lane", name.clone())], lane.1));
    gauges.set_each("lane_oldest_seconds", "How long the oldest of them has been ready", oldest);
}

/// A lane as a label.
fn name_of(capabilities: &[String]) -> String {
    if capabilities.is_empty() { "none".to_owned() } else { capabilities.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::page,
        model::{CapabilitySet, ExecutionMode, Status},
    };

    #[test]
    fn lanes_are_bounded_and_nothing_is_lost() {
        let counts: Vec<TaskCount> = (1..=50)
            .map(|n| TaskCount {
                status: Status::Created,
                execution_mode: ExecutionMode::Undecided,
                capabilities: CapabilitySet::from(vec![format!("agent:{n}")]),
                tasks: n,
                oldest_secs: 100.0 - n as f64,
            })
            .collect();
        let mut gauges = Gauges::new();
        tasks(&counts, &mut gauges);
        let page = page(&gauges);
        let lanes: Vec<&str> =
            page.lines().filter(|l| l.starts_with("agent_fleet_lane_waiting{")).collect();
        assert_eq!(lanes.len(), LANES, "{lanes:#?}");
        let total: f64 =
            lanes.iter().map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
        assert_eq!(total, 1275.0);
        assert!(page.contains("agent_fleet_lane_oldest_seconds{lane=\"others\"} 99"), "{page}");
    }
}
