//! Where traces go: a receiver of OTLP over HTTP, which reads what it is sent by the wire format of protobuf.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::net::TcpListener;
use warp::Filter;

use super::eventually;

/// A span as it arrived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Span {
    /// What the process says of itself.
    pub(crate) resource: BTreeMap<String, String>,
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    /// Empty for the first span of a trace.
    pub(crate) parent: String,
    pub(crate) name: String,
    /// Nanoseconds.
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) marks: Vec<String>,
    pub(crate) failed: bool,
}

impl Span {
    /// The id of the process that it came from.
    pub(crate) fn replica(&self) -> &str {
        &self.resource["service.instance.id"]
    }
}

/// What was received so far.
#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    raw: Vec<u8>,
}

/// Listens until the test ends.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    received: Arc<Mutex<Received>>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::start_on(0).await
    }

    /// On this port.
    pub(crate) async fn start_on(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Received::default()));
        let to = Arc::clone(&received);
        let route = warp::path!("v1" / "traces")
            .and(warp::post())
            .and(warp::header::exact("content-type", "application/x-protobuf"))
            .and(warp::body::bytes())
            .map(move |body: bytes::Bytes| {
                let mut to = to.lock().unwrap();
                to.spans.extend(request(&body));
                to.raw.extend_from_slice(&body);
                // An empty message: all of it was taken.
                warp::reply::with_header("", "content-type", "application/x-protobuf")
            });
        tokio::spawn(warp::serve(route).incoming(listener).run());
        Self { url, received }
    }

    /// All that was received.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.received.lock().unwrap().spans.clone()
    }

    /// True when this text stands anywhere in what was received.
    pub(crate) fn has_text(&self, text: &str) -> bool {
        let received = self.received.lock().unwrap();
        received.raw.windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// Waits for the spans of a trace, by their names, which must be these and no others.
    pub(crate) async fn trace(&self, trace_id: &str, names: &[&str]) -> BTreeMap<String, Span> {
        let spans = eventually(&format!("{names:?} of {trace_id} are received"), async || {
            let spans: Vec<Span> =
                self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect();
            (spans.len() >= names.len()).then_some(spans)
        })
        .await;
        let mut found: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        let mut wanted = names.to_vec();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{spans:#?}");
        spans.into_iter().map(|span| (span.name.clone(), span)).collect()
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(number) => panic!("{number} where bytes are expected"),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(bytes) => panic!("{bytes:?} where a number is expected"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

/// The fields of a message, by their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)),
            1 => Value::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                Value::Bytes(take(&mut bytes, length))
            }
            5 => {
                let number = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
                Value::Number(number.into())
            }
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, value));
    }
    all
}

/// `ExportTraceServiceRequest`.
fn request(bytes: &[u8]) -> Vec<Span> {
    let resource_spans = fields(bytes).into_iter().filter(|(number, _)| *number == 1);
    let mut spans = Vec::new();
    for (_, message) in resource_spans {
        let parts = fields(message.bytes());
        let mut resource = BTreeMap::new();
        for (_, part) in parts.iter().filter(|(number, _)| *number == 1) {
            resource.extend(attributes(&fields(part.bytes()), 1));
        }
        for (_, scope) in parts.iter().filter(|(number, _)| *number == 2) {
            let own = fields(scope.bytes()).into_iter().filter(|(number, _)| *number == 2);
            spans.extend(
                own.map(|(_, one)| Span { resource: resource.clone(), ..span(one.bytes()) }),
            );
        }
    }
    spans
}

fn span(bytes: &[u8]) -> Span {
    let parts = fields(bytes);
    let mut span = Span { attributes: attributes(&parts, 9), ..Span::default() };
    for (number, value) in &parts {
        match number {
            1 => span.trace_id = hex::encode(value.bytes()),
            2 => span.span_id = hex::encode(value.bytes()),
            4 => span.parent = hex::encode(value.bytes()),
            5 => span.name = value.text(),
            7 => span.begin = value.number(),
            8 => span.end = value.number(),
            11 => {
                let event = fields(value.bytes());
                span.marks.extend(event.iter().filter(|(n, _)| *n == 2).map(|(_, v)| v.text()));
            }
            15 => {
                let status = fields(value.bytes());
                span.failed = status.iter().any(|(n, v)| *n == 3 && v.number() == 2);
            }
            _ => {}
        }
    }
    span
}

/// The `KeyValue`s that stand under a number: texts, and whole numbers as texts.
fn attributes(parts: &[(u64, Value<'_>)], number: u64) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (_, pair) in parts.iter().filter(|(n, _)| *n == number) {
        let (mut key, mut text) = (String::new(), String::new());
        for (number, value) in fields(pair.bytes()) {
            if number == 1 {
                key = value.text();
            } else if number == 2 {
                for (kind, value) in fields(value.bytes()) {
                    text = match kind {
                        1 => value.text(),
                        _ => value.number().to_string(),
                    };
                }
            }
        }
        all.insert(key, text);
    }
    all
}
