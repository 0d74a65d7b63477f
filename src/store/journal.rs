//! One log line for each event of a task that this process has committed. What a transaction does is noted while it runs
//! and written when its commit is known: never before, and not at all when it ends without one. A commit that was not
//! heard of leaves no line; `fleet.task_events` has it. What a line says, the task's trace is told, too.

use std::time::SystemTime;

use tokio_postgres::Row;
use tracing::Level;
use uuid::Uuid;

use super::{rows::get, traced::Traced};
use crate::{
    model::{EventType, Lease, Status},
    traces,
};

/// By which a filter names these lines.
pub(super) const TARGET: &str = "agent_fleet::task";

/// What happened to a task: a row of `fleet.task_events` without its detail, which may quote a receipt.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) task_id: Uuid,
    /// Known where the task comes to be; afterwards its id leads back to that line.
    pub(super) key: Option<String>,
    pub(super) event: String,
    pub(super) from: Option<String>,
    /// `None` where the status stays.
    pub(super) status: Option<String>,
    pub(super) lease: Lease,
    /// Where the statement says it.
    pub(super) attempt: Option<i32>,
    /// As in the event log: `agent:`, `host:`, `replica:`, `operator:` or `forgejo:` and a name.
    pub(super) actor: String,
    /// `host_id/agent_type` of who takes it, where that is not the actor.
    pub(super) host: Option<String>,
    /// Where the task has a trace, and somebody records it.
    pub(super) traced: Option<Traced>,
}

impl Line {
    pub(super) fn agent(&self) -> Option<&str> {
        self.actor.strip_prefix("agent:")
    }

    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref().or_else(|| self.actor.strip_prefix("host:"))
    }
}

/// The lines of one transaction.
#[derive(Debug)]
pub(super) struct Journal {
    lines: Vec<Line>,
    /// When the transaction did.
    begun: SystemTime,
}

impl Default for Journal {
    fn default() -> Self {
        Self { lines: Vec::new(), begun: SystemTime::now() }
    }
}

impl Journal {
    /// Notes a line; costs nothing when these lines and traces are off.
    pub(super) fn note(&mut self, line: impl FnOnce() -> Line) {
        if tracing::enabled!(target: TARGET, Level::INFO) || traces::are_on() {
            self.lines.push(line());
        }
    }

    /// Notes what a statement did to each task of its rows, which have `task_id`, `lease` and `attempt`. `change`: from which
    /// status to which; without it the status stays.
    pub(super) fn note_rows(
        &mut self,
        rows: &[Row],
        event: EventType,
        change: Option<(Status, Status)>,
        actor: &str,
    ) {
        for row in rows {
            self.note(|| Line {
                task_id: get(row, "task_id"),
                event: event.to_string(),
                from: change.map(|(from, _)| from.to_string()),
                status: change.map(|(_, to)| to.to_string()),
                lease: Lease(get(row, "lease")),
                attempt: Some(get(row, "attempt")),
                actor: actor.to_owned(),
                ..Line::default()
            });
        }
    }

    /// The transaction is committed.
    pub(super) fn write(self) {
        for line in self.lines {
            if let Some(traced) = &line.traced {
                traced.record(&line, self.begun);
            }
            let (agent, host) = (line.agent(), line.host());
            tracing::event!(
                target: TARGET,
                Level::INFO,
                {
                    task.id = %line.task_id,
                    task.key = line.key.as_deref(),
                    task.event = line.event,
                    task.from = line.from,
                    task.status = line.status,
                    task.lease = line.lease.0,
                    task.attempt = line.attempt,
                    agent.id = agent,
                    host.name = host,
                    actor = line.actor
                },
                "task"
            );
        }
    }
}
