//! The event log.

use std::sync::Arc;

use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call},
    detached,
    error::ApiError,
    page, v1,
};
use crate::{coordinator::Replica, store::EventPlace};

/// `/api/v1/events`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    v1().and(warp::path!("events"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call| detached(list(call)))
        .boxed()
}

/// `?after` (or `?cursor`) is the `event_id` of the last event seen. Events come in the order in which their transactions
/// began to write, so ids are not always ascending; none is skipped.
async fn list(call: Call) -> Answer {
    call.reader().await?;
    let limit = call.limit()?;
    let any = 0..=i64::MAX;
    let after = match call.query_number("after", any.clone())? {
        Some(after) => Some(after),
        None => call.query_number("cursor", any)?,
    };
    let place = place_after(&call, "after", after).await?;
    let events = call.replica.store.list_events(&place, limit).await?;
    page(&events, limit, |event| event.event_id.to_string())
}

/// The place after the event that the parameter `name` gives; the start without one.
pub(super) async fn place_after(
    call: &Call,
    name: &str,
    event_id: Option<i64>,
) -> Result<EventPlace, ApiError> {
    let Some(id) = event_id.filter(|id| *id != 0) else { return Ok(EventPlace::start()) };
    let place = call.replica.store.find_event_place(id).await?;
    place.ok_or_else(|| {
        ApiError::bad_request(format!(
            "{name}: there is no event {id} (any more); begin without it"
        ))
    })
}
