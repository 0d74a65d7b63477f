//! OpenTelemetry traces: what happens to a task is one trace, on whichever replica it happens.
//!
//! The span that makes a task is kept on it, as `traceparent`; everything later is a child of that one. No span waits in
//! memory for another: what took long, a run, is recorded as a whole when it is over, by the replica that ends it. So a
//! takeover breaks no trace, and neither does the death of a replica.
//!
//! Only with the feature `otel`, and when the environment says where to send them (`OTEL_EXPORTER_OTLP_ENDPOINT`). Otherwise
//! nothing is recorded, and a task keeps the `traceparent` that its creator sent. Spans name tasks, agents and hosts; they
//! hold no text of a task and no secret.

#[cfg(not(feature = "otel"))]
#[path = "off.rs"]
mod recorder;
#[cfg(feature = "otel")]
#[path = "otel.rs"]
mod recorder;

use std::{fmt, time::SystemTime};

use self::recorder::Recorded;
use crate::model::Traceparent;

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Another protocol than the one that is built in.
    #[error("{variable} is `{value}`; this program speaks `http/protobuf` only")]
    Protocol {
        /// The variable that says so.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// The exporter's own settings, mostly its address.
    #[error("traces cannot be exported: {0}")]
    Exporter(String),
}

/// Begins to record, if the environment wants it; `replica_id` tells this process from others. Once in a process.
pub fn init(replica_id: &str) -> Result<(), TracesError> {
    recorder::init(replica_id)
}

/// Sends what is recorded, within a few seconds or not at all; nothing is recorded any more.
pub async fn finish() {
    recorder::finish().await;
}

/// Whether anything is recorded here.
pub(crate) fn are_on() -> bool {
    recorder::are_on()
}

/// A part of a trace. Over when it is dropped, if nobody ends it before.
#[derive(Debug)]
pub(crate) struct Span {
    /// `None` where nothing is recorded.
    recorded: Option<Recorded>,
    parent: Option<Traceparent>,
}

/// What a span is to who looks at the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request of somebody else.
    Request,
    /// Something of ours.
    Inner,
}

impl Span {
    /// One that began then: a child of `parent`, else the first of a new trace.
    pub(crate) fn begin(
        name: &'static str,
        kind: Kind,
        parent: Option<Traceparent>,
        at: SystemTime,
    ) -> Self {
        Self { recorded: Recorded::begin(name, kind, parent, at), parent }
    }

    /// What its children are to have; where nothing is recorded, what it was to be a child of.
    pub(crate) fn traceparent(&self) -> Option<Traceparent> {
        self.recorded.as_ref().and_then(Recorded::traceparent).or(self.parent)
    }

    /// Says something of it. Never the text of a task, of an agent or of its output.
    pub(crate) fn set(&mut self, key: &'static str, value: impl fmt::Display) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set(key, value.to_string());
        }
    }

    /// The same with a number.
    pub(crate) fn set_number(&mut self, key: &'static str, value: i64) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set_number(key, value);
        }
    }

    /// Something that happened meanwhile.
    pub(crate) fn mark(&mut self, what: &'static str, at: SystemTime) {
        if let Some(recorded) = &mut self.recorded {
            recorded.mark(what, at);
        }
    }

    /// It is over.
    pub(crate) fn end(self) {}

    /// It did not go well.
    pub(crate) fn fail(&mut self) {
        if let Some(recorded) = &mut self.recorded {
            recorded.fail();
        }
    }
}
