//! What this process counts and times, and the page that Prometheus reads.
//!
//! Recording is a look-up and a few atomic additions. What is the case now (queues, hosts, the pool) is not recorded: it is
//! read when somebody asks, by [`crate::coordinator`]. The values that a label can have are few and known.

use std::{
    sync::{LazyLock, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::prometheus_text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

/// The content type of the page.
pub(crate) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;
/// What every name begins with.
const PREFIX: &str = "agent_fleet";
/// From what an index look-up takes to `statement_timeout`.
const SECONDS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];
/// Rows that share one statement.
const ROWS: [f64; 10] = [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0, 1000.0];
/// The statements whose rows share one commit.
const BATCHES: [&str; 7] = [
    "claim_pull_3_take",
    "claim_pull_next",
    "claim_push_3_take",
    "complete_leases",
    "end_leases",
    "insert_tasks",
    "touch_sessions",
];

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Histograms = Family<Labels<1>, Histogram>;

struct Recorded {
    registry: Registry,
    requests: Counters<2>,
    deliveries: Counters<1>,
    claims: Counters<1>,
    claim: Histograms,
    leases_ended: Counters<1>,
    transitions: Counters<1>,
    statement: Histograms,
    statement_errors: Counters<1>,
    batch_rows: Histograms,
    commit: Histogram,
    wake: Histogram,
    ssh_sessions: Gauge,
}

static RECORDED: LazyLock<Recorded> = LazyLock::new(Recorded::new);

impl Recorded {
    fn new() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut new = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            deliveries: Family::default(),
            claims: Family::default(),
            claim: Family::new_with_constructor(seconds),
            leases_ended: Family::default(),
            transitions: Family::default(),
            statement: Family::new_with_constructor(seconds),
            statement_errors: Family::default(),
            batch_rows: Family::new_with_constructor(|| Histogram::new(ROWS)),
            commit: seconds(),
            wake: seconds(),
            ssh_sessions: Gauge::default(),
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let to = &mut new.registry;
        to.register("build", "The version that runs", build);
        to.register(
            "http_requests",
            "Requests answered, by method and status",
            new.requests.clone(),
        );
        to.register(
            "webhook_deliveries",
            "Signed deliveries, by what came of them",
            new.deliveries.clone(),
        );
        to.register("claims", "Tasks claimed, by mode", new.claims.clone());
        to.register("claim_seconds", "One claim, commit included, by mode", new.claim.clone());
        to.register("leases_ended", "Leases that ended, by how", new.leases_ended.clone());
        to.register("transitions", "What ended leases led to, by status", new.transitions.clone());
        to.register(
            "statement_seconds",
            "One statement, by the name of its file",
            new.statement.clone(),
        );
        to.register("statement_errors", "Statements that failed", new.statement_errors.clone());
        to.register("batch_rows", "Rows that one statement wrote at once", new.batch_rows.clone());
        to.register("commit_seconds", "One commit", new.commit.clone());
        to.register(
            "wake_seconds",
            "From a hint that there is work to the look for it",
            new.wake.clone(),
        );
        to.register("ssh_sessions", "Open connections to hosts", new.ssh_sessions.clone());
        // Zero is an answer, too: a rate over a counter that is not there yet is none.
        for mode in ["http_pull", "ssh_cli"] {
            new.claims.get_or_create(&[("mode", mode)]).inc_by(0);
        }
        for outcome in ["completed", "failed", "timed_out", "lost", "released", "undone"] {
            new.leases_ended.get_or_create(&[("outcome", outcome)]).inc_by(0);
        }
        new
    }
}

/// A request was answered. A method that no route has counts as `other`.
pub(crate) fn request(method: &str, status: u16) {
    let method = match method {
        "GET" => "GET",
        "POST" => "POST",
        "DELETE" => "DELETE",
        _ => "other",
    };
    let class = match status {
        200..300 => "2xx",
        401 => "401",
        403 => "403",
        404 => "404",
        409 => "409",
        429 => "429",
        503 => "503",
        400..500 => "other 4xx",
        _ => "other 5xx",
    };
    RECORDED.requests.get_or_create(&[("method", method), ("status", class)]).inc();
}

/// A signed delivery was taken; `result` as the forge is told.
pub(crate) fn delivery(result: &'static str) {
    RECORDED.deliveries.get_or_create(&[("result", result)]).inc();
}

/// A claim was committed, of so many tasks.
pub(crate) fn claim(mode: &'static str, tasks: usize, took: Duration) {
    RECORDED.claims.get_or_create(&[("mode", mode)]).inc_by(tasks as u64);
    RECORDED.claim.get_or_create(&[("mode", mode)]).observe(took.as_secs_f64());
}

/// A lease ended.
pub(crate) fn lease_ended(outcome: &'static str, status: &'static str) {
    RECORDED.leases_ended.get_or_create(&[("outcome", outcome)]).inc();
    RECORDED.transitions.get_or_create(&[("status", status)]).inc();
}

/// A statement was run.
pub(crate) fn statement(name: &'static str, took: Duration, rows: Option<u64>) {
    let labels = [("statement", name)];
    RECORDED.statement.get_or_create(&labels).observe(took.as_secs_f64());
    match rows {
        None => _ = RECORDED.statement_errors.get_or_create(&labels).inc(),
        Some(rows) if BATCHES.contains(&name) => {
            RECORDED.batch_rows.get_or_create(&labels).observe(rows as f64);
        }
        Some(_) => {}
    }
}

/// A transaction was committed.
pub(crate) fn commit(took: Duration) {
    RECORDED.commit.observe(took.as_secs_f64());
}

/// A hint was followed by a look.
pub(crate) fn wake(took: Duration) {
    RECORDED.wake.observe(took.as_secs_f64());
}

/// An open connection to a host, while it lives.
#[derive(Debug)]
pub(crate) struct SshSession(());

impl SshSession {
    pub(crate) fn open() -> Self {
        RECORDED.ssh_sessions.inc();
        Self(())
    }
}

impl Drop for SshSession {
    fn drop(&mut self) {
        RECORDED.ssh_sessions.dec();
    }
}

/// What is the case now.
#[derive(Debug, Default)]
pub(crate) struct Gauges(Registry);

impl Gauges {
    pub(crate) fn new() -> Self {
        Self(Registry::with_prefix(PREFIX))
    }

    /// One number.
    pub(crate) fn set(&mut self, name: &'static str, help: &'static str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    /// A number for each of these labels.
    pub(crate) fn set_each<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = ([(&'static str, String); N], f64)>,
    ) {
        let family = Family::<[(&'static str, String); N], Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }
}

/// The page: what was recorded since the start, and what is the case now.
pub(crate) fn page(now: &Gauges) -> String {
    let mut page = String::new();
    for registry in [&RECORDED.registry, &now.0] {
        prometheus_text::encode(&mut page, registry).expect("a String takes everything");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_on_the_page() {
        claim("ssh_cli", 3, Duration::from_millis(2));
        request("PATCH", 418);
        statement("end_leases", Duration::from_millis(1), Some(7));
        statement("end_leases", Duration::from_millis(1), None);
        let open = SshSession::open();
        let mut now = Gauges::new();
        now.set("listener_up", "Whether notifications arrive", 1.0);
        now.set_each("lane_waiting", "Waiting", [([("lane", "say \"hi\"".to_owned())], 2.0)]);
        let page = page(&now);
        drop(open);
        for line in [
            "# TYPE agent_fleet_claims_total counter",
            "agent_fleet_http_requests_total{method=\"other\",status=\"other 4xx\"} 1",
            "agent_fleet_claim_seconds_bucket{mode=\"ssh_cli\",le=\"0.0025\"} 1",
            "agent_fleet_batch_rows_bucket{statement=\"end_leases\",le=\"10\"} 1",
            "agent_fleet_statement_errors_total{statement=\"end_leases\"} 1",
            "agent_fleet_leases_ended_total{outcome=\"lost\"} 0",
            "agent_fleet_ssh_sessions 1",
            "agent_fleet_listener_up 1",
            "agent_fleet_lane_waiting{lane=\"say \\\"hi\\\"\"} 2",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
