//! Server-sent events: the event log, and a run's output, followed.
//!
//! A stream reads the database once a second while somebody listens to it. It ends when the replica stops, when the
//! database is away, and after [`LIFETIME`], so that its credential is looked at again; clients then connect anew by
//! themselves and say by `Last-Event-ID` where they were (HTML standard, section 9.2).

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::stream;
use tokio::{sync::mpsc, time::Instant};
use warp::{
    Filter,
    filters::{BoxedFilter, sse},
    reply::{Reply, Response},
};

use super::{
    Answer,
    call::{BODY, Call, call},
    detached,
    error::ApiError,
    events::place_after,
    logs::{readable, render_page},
    v1,
};
use crate::{
    coordinator::Replica,
    model::{Event, Lease, TaskId},
    store::{EventPlace, StoreError},
    telemetry::error_chain,
};

/// Between two reads that find nothing.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one stream lasts at most.
const LIFETIME: Duration = Duration::from_mins(10);
/// Events in one read.
const PAGE: i64 = 200;

/// `/api/v1/events/stream`, `/api/v1/tasks/{id}/logs/stream`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let events = v1()
        .and(warp::path!("events" / "stream"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call| detached(follow_events(call)));
    let logs = v1()
        .and(warp::path!("tasks" / String / "logs" / "stream"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|id, call| detached(follow_logs(call, id)));
    events.or(logs).unify().boxed()
}

/// What one read brought.
struct Read {
    events: Vec<sse::Event>,
    then: Then,
}

enum Then {
    /// There may be more already.
    Again,
    Wait,
    End,
}

/// Where a stream reads from.
trait Source: Send + 'static {
    fn read(&mut self, replica: &Replica) -> impl Future<Output = Result<Read, StoreError>> + Send;
}

/// Reads again and again, and sends what comes: the next read waits until the client has taken the last.
fn reply<S: Source>(replica: &Arc<Replica>, mut source: S) -> Response {
    let (sender, receiver) = mpsc::channel(1);
    let reader = Arc::clone(replica);
    replica.shutdown.spawn(async move {
        let until = Instant::now() + LIFETIME;
        while Instant::now() < until && !reader.shutdown.is_triggered() {
            let read = match source.read(&reader).await {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "a stream ends: its source could not be read");
                    return;
                }
            };
            let taken = async {
                for event in read.events {
                    sender.send(event).await.ok()?;
                }
                match read.then {
                    Then::Again => Some(()),
                    Then::Wait => {
                        tokio::time::timeout(PERIOD, sender.closed()).await.err().map(|_| ())
                    }
                    Then::End => None,
                }
            };
            let taken = tokio::select! {
                taken = taken => taken,
                () = reader.shutdown.triggered() => None,
            };
            if taken.is_none() {
                return;
            }
        }
    });
    let events = stream::unfold(receiver, |mut receiver| async move {
        let event = receiver.recv().await?;
        Some((Ok::<_, Infallible>(event), receiver))
    });
    let events = sse::keep_alive().interval(Duration::from_secs(15)).stream(events);
    // Proxies that buffer would keep the events back (nginx's header).
    warp::reply::with_header(sse::reply(events), "X-Accel-Buffering", "no").into_response()
}

struct EventLog(EventPlace);

impl Source for EventLog {
    async fn read(&mut self, replica: &Replica) -> Result<Read, StoreError> {
        let (found, place) = replica.store.follow_events(&self.0, PAGE).await?;
        self.0 = place;
        let full = i64::try_from(found.len()).unwrap_or(PAGE) >= PAGE;
        let events = found.iter().map(event).collect();
        Ok(Read { events, then: if full { Then::Again } else { Then::Wait } })
    }
}

fn event(event: &Event) -> sse::Event {
    let sent =
        sse::Event::default().event(event.event_type.as_str()).id(event.event_id.to_string());
    sent.json_data(event).unwrap_or_default()
}

async fn follow_events(call: Call) -> Answer {
    call.reader().await?;
    let place = match last_event_id(&call)? {
        None => call.replica.store.newest_event_place().await?,
        Some(id) => {
            let id = id.parse().map_err(|_| bad_last_event_id("the id of an event"))?;
            place_after(&call, "Last-Event-ID", Some(id)).await?
        }
    };
    Ok(reply(&call.replica, EventLog(place)))
}

struct Output {
    task: TaskId,
    /// Null until there is some.
    lease: Option<Lease>,
    offset: i64,
}

impl Source for Output {
    async fn read(&mut self, replica: &Replica) -> Result<Read, StoreError> {
        let Some(page) = replica.store.read_logs(self.task, self.lease, self.offset).await? else {
            return Ok(Read { events: Vec::new(), then: Then::End });
        };
        let lease = page.chunks.first().map(|chunk| chunk.lease);
        let page = render_page(page);
        let done = page["done"] == true;
        let next = page["next_offset"].as_i64().unwrap_or(self.offset);
        let mut events = Vec::new();
        if let Some(lease) = lease {
            self.lease = Some(lease);
            let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            for (place, item) in items.iter().enumerate() {
                // Where to go on is where the following one begins.
                let after = items.get(place + 1).and_then(|i| i["offset"].as_i64()).unwrap_or(next);
                let sent = sse::Event::default().event("log").id(format!("{}:{after}", lease.0));
                events.push(sent.json_data(item).unwrap_or_default());
            }
        }
        let moved = next > self.offset;
        self.offset = next;
        if done {
            events.push(sse::Event::default().event("done").data("{}"));
        }
        let then = match (done, moved) {
            (true, _) => Then::End,
            (false, true) => Then::Again,
            (false, false) => Then::Wait,
        };
        Ok(Read { events, then })
    }
}

async fn follow_logs(call: Call, id: String) -> Answer {
    let task = readable(&call, &id).await?;
    let mut source =
        Output { task, lease: call.query_number("lease", 0..=i64::MAX)?.map(Lease), offset: 0 };
    if let Some(id) = last_event_id(&call)? {
        let place = id.split_once(':').and_then(|(lease, offset)| {
            Some((lease.parse::<u32>().ok()?, offset.parse::<u32>().ok()?))
        });
        let (lease, offset) = place.ok_or_else(|| bad_last_event_id("lease:offset"))?;
        source.lease = Some(Lease(lease.into()));
        source.offset = offset.into();
    }
    Ok(reply(&call.replica, source))
}

/// An empty one counts as absent.
fn last_event_id(call: &Call) -> Result<Option<&str>, ApiError> {
    match call.headers.get("last-event-id").map(|value| value.to_str()) {
        None | Some(Ok("")) => Ok(None),
        Some(Ok(id)) => Ok(Some(id)),
        Some(Err(_)) => Err(bad_last_event_id("what this stream sent")),
    }
}

fn bad_last_event_id(wanted: &str) -> ApiError {
    ApiError::bad_request(format!("Last-Event-ID: must be {wanted}; leave it out to begin anew"))
}
