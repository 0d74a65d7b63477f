//! What the trace of a task is told of its events, once they are committed: a claim as a span of its own; what an attempt
//! did, and the receipt that ended it, as a whole when it is over. Tasks without a trace, and processes that record
//! nothing, tell nothing.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio_postgres::Row;

use super::{journal::Line, rows::get};
use crate::{
    model::{EventType, Traceparent},
    traces::{self, Kind, Span},
};

/// Outcomes that are an error to who looks at the trace.
const WRONG: [EventType; 3] = [EventType::Failed, EventType::TimedOut, EventType::Lost];

/// What a statement says of a traced task besides the event.
#[derive(Debug, Deserialize)]
pub(super) struct Traced {
    traceparent: Traceparent,
    /// Of the attempt that has ended: how long ago it was claimed, and said to be under way, by the database's clock.
    claimed_secs: Option<f64>,
    started_secs: Option<f64>,
    /// Who had it.
    agent_id: Option<String>,
    host: Option<String>,
    #[serde(skip)]
    has_receipt: bool,
}

impl Traced {
    /// Of a claim or a takeover, by a row with `traceparent`.
    pub(super) fn claim(row: &Row) -> Option<Self> {
        if !traces::are_on() {
            return None;
        }
        let traceparent = get::<Option<&str>>(row, "traceparent")?.parse().ok()?;
        let host = row.try_get("host").ok();
        Some(Self {
            traceparent,
            claimed_secs: None,
            started_secs: None,
            agent_id: None,
            host,
            has_receipt: false,
        })
    }

    /// Of the end of an attempt, by a row with `trace`.
    pub(super) fn attempt(row: &Row, has_receipt: bool) -> Option<Self> {
        if !traces::are_on() {
            return None;
        }
        let trace = get::<Option<serde_json::Value>>(row, "trace")?;
        let told: Self = serde_json::from_value(trace).ok()?;
        Some(Self { has_receipt, ..told })
    }

    /// Records what the line says. `begun`: when its transaction did.
    pub(super) fn record(&self, line: &Line, begun: SystemTime) {
        let Some(claimed) = self.claimed_secs.map(ago) else {
            let is_claim = line.event == EventType::Claimed.as_str();
            let name = if is_claim { "claim" } else { "takeover" };
            self.begin(name, line, self.traceparent, begun).end();
            return;
        };
        let started = self.started_secs.map(ago);
        // A run on a host begins when its CLI does.
        let begin = started.filter(|_| self.host.is_some()).unwrap_or(claimed);
        let mut run = self.begin("run", line, self.traceparent, begin);
        if let Some(started) = started {
            run.mark("running", started);
        }
        run.set("task.outcome", &line.event);
        if let Some(status) = &line.status {
            run.set("task.status", status);
        }
        if WRONG.iter().any(|wrong| line.event == wrong.as_str()) {
            run.fail();
        }
        if self.has_receipt {
            let parent = run.traceparent().unwrap_or(self.traceparent);
            let mut receipt = self.begin("receipt", line, parent, begun);
            receipt.set("task.outcome", &line.event);
        }
    }

    fn begin(&self, name: &'static str, line: &Line, parent: Traceparent, at: SystemTime) -> Span {
        let mut span = Span::begin(name, Kind::Inner, Some(parent), at);
        span.set("task.id", line.task_id);
        span.set_number("task.lease", line.lease.0);
        if let Some(attempt) = line.attempt {
            span.set_number("task.attempt", attempt.into());
        }
        if let Some(agent) = self.agent_id.as_deref().or(line.agent()) {
            span.set("agent.id", agent);
        }
        if let Some(host) = self.host.as_deref().or(line.host()) {
            span.set("host.name", host);
        }
        span
    }
}

/// So many seconds before now, by this process's clock: durations are the same by every clock.
fn ago(secs: f64) -> SystemTime {
    let now = SystemTime::now();
    let ago = Duration::try_from_secs_f64(secs.max(0.0)).unwrap_or_default();
    now.checked_sub(ago).unwrap_or(now)
}
