//! With the feature `otel`: spans go into a bounded queue, from which a thread of its own sends them in batches, as OTLP
//! over HTTP. Whoever records never waits for it: what the queue has no room for is lost.

use std::{
    env,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{
        Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceState, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};

use super::{Kind, TracesError};
use crate::model::Traceparent;

/// The last batch has so long to be sent when the process stops.
const LAST: Duration = Duration::from_secs(3);
/// The protocol that is built in, as its variable spells it.
const PROTOCOL: &str = "http/protobuf";

static RECORDER: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// A variable that says something.
fn said(variable: &str) -> Option<String> {
    env::var(variable).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn is_wanted() -> bool {
    let address = said("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some()
        || said("OTEL_EXPORTER_OTLP_ENDPOINT").is_some();
    let off = said("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || said("OTEL_TRACES_EXPORTER").is_some_and(|value| value.eq_ignore_ascii_case("none"));
    address && !off
}

pub(super) fn init(replica_id: &str) -> Result<(), TracesError> {
    if !is_wanted() || RECORDER.get().is_some() {
        return Ok(());
    }
    let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    if let Some((variable, value)) =
        protocols.into_iter().find_map(|variable| Some((variable, said(variable)?)))
        && value != PROTOCOL
    {
        return Err(TracesError::Protocol { variable, value });
    }
    crate::tls::install_provider();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .build()
        .map_err(|error| TracesError::Exporter(error.to_string()))?;
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(Reported::new(exporter)).build())
        .with_resource(resource(replica_id))
        .build();
    let tracer = provider.tracer("agent-fleet");
    if RECORDER.set((provider, tracer)).is_ok() {
        tracing::info!("traces are exported");
    }
    Ok(())
}

/// This process, by what the environment says of it, and what it says itself where the environment is silent.
fn resource(replica_id: &str) -> Resource {
    let own = [
        KeyValue::new("service.name", "agent-fleet"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", replica_id.to_owned()),
    ];
    let given = said("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let has_name = said("OTEL_SERVICE_NAME").is_some();
    let is_given = |key: &str| {
        let listed = given.split(',').filter_map(|pair| pair.split_once('='));
        listed.map(|(key, _)| key.trim()).any(|listed| listed == key)
            || key == "service.name" && has_name
    };
    let missing = own.into_iter().filter(|own| !is_given(own.key.as_str()));
    Resource::builder().with_attributes(missing).build()
}

pub(super) async fn finish() {
    let Some((provider, _)) = RECORDER.get() else { return };
    // It blocks.
    let sent = tokio::task::spawn_blocking(|| provider.shutdown_with_timeout(LAST)).await;
    if !matches!(sent, Ok(Ok(()))) {
        tracing::warn!("the last traces could not be sent");
    }
}

pub(super) fn are_on() -> bool {
    RECORDER.get().is_some()
}

/// The exporter, and a log line when it begins to fail and when it is well again: not one for each batch.
#[derive(Debug)]
struct Reported<E> {
    exporter: E,
    fails: AtomicBool,
}

impl<E> Reported<E> {
    const fn new(exporter: E) -> Self {
        Self { exporter, fails: AtomicBool::new(false) }
    }
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        let failed = result.is_err();
        match (self.fails.swap(failed, Ordering::Relaxed), &result) {
            (false, Err(error)) => {
                tracing::warn!(%error, spans, "traces are not taken; until they are, they are lost without another word");
            }
            (true, Ok(())) => tracing::info!("traces are taken again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// A span that is recorded, if the sampler wants it.
#[derive(Debug)]
pub(super) struct Recorded(opentelemetry_sdk::trace::Span);

impl Recorded {
    pub(super) fn begin(
        name: &'static str,
        kind: Kind,
        parent: Option<Traceparent>,
        at: SystemTime,
    ) -> Option<Self> {
        let (_, tracer) = RECORDER.get()?;
        let context = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(SpanContext::new(
                TraceId::from_bytes(parent.trace_id),
                SpanId::from_bytes(parent.span_id),
                TraceFlags::default().with_sampled(parent.sampled),
                true,
                TraceState::default(),
            ))
        });
        let kind = match kind {
            Kind::Request => SpanKind::Server,
            Kind::Inner => SpanKind::Internal,
        };
        let builder = tracer.span_builder(name).with_kind(kind).with_start_time(at);
        Some(Self(builder.start_with_context(tracer, &context)))
    }

    /// `None` once the process stops.
    pub(super) fn traceparent(&self) -> Option<Traceparent> {
        let own = self.0.span_context();
        own.is_valid().then(|| Traceparent {
            trace_id: own.trace_id().to_bytes(),
            span_id: own.span_id().to_bytes(),
            sampled: own.is_sampled(),
        })
    }

    pub(super) fn set(&mut self, key: &'static str, value: String) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    pub(super) fn set_number(&mut self, key: &'static str, value: i64) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    pub(super) fn mark(&mut self, what: &'static str, at: SystemTime) {
        self.0.add_event_with_timestamp(what, at, Vec::new());
    }

    pub(super) fn fail(&mut self) {
        self.0.set_status(Status::error(""));
    }
}
