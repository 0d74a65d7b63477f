//! The event log, read so that nothing that commits late is skipped.

use std::time::Duration;

use super::{
    Store, StoreError,
    error::retry,
    rows,
    rows::get,
    statement::{FIND_EVENT_STALL, FIND_EVENT_XID, LIST_EVENTS, READ_EVENT_HORIZON},
};
use crate::model::Event;

/// Where a reader is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPlace {
    xid: String,
    event_id: i64,
}

impl EventPlace {
    /// Before the first event.
    pub fn start() -> Self {
        Self { xid: "0".to_owned(), event_id: 0 }
    }
}

impl Store {
    /// The place after an event; `None` when there is no such event (any more).
    pub async fn find_event_place(&self, event_id: i64) -> Result<Option<EventPlace>, StoreError> {
        let row = self.read_row(&FIND_EVENT_XID, &[&event_id]).await?;
        Ok(row.map(|r| EventPlace { xid: get(&r, "xid"), event_id }))
    }

    /// The place after everything that has been committed.
    pub async fn newest_event_place(&self) -> Result<EventPlace, StoreError> {
        let xid = get(&self.read_one(&READ_EVENT_HORIZON, &[]).await?, "horizon");
        Ok(EventPlace { xid, event_id: -1 })
    }

    /// For how long the oldest event has been held back that is committed and may still be preceded; `None` when none is.
    pub async fn event_stall(&self) -> Result<Option<Duration>, StoreError> {
        let client = self.client().await?;
        let horizon: String = get(&READ_EVENT_HORIZON.one(&client, &[]).await?, "horizon");
        let row = FIND_EVENT_STALL.one(&client, &[&horizon]).await?;
        let secs: Option<f64> = get(&row, "stalled_secs");
        Ok(secs.map(|secs| Duration::from_secs_f64(secs.max(0.0))))
    }

    /// The next events, and the place after them.
    pub async fn follow_events(
        &self,
        after: &EventPlace,
        limit: i64,
    ) -> Result<(Vec<Event>, EventPlace), StoreError> {
        let (events, place) = retry!(self.read_events(after, limit).await)?;
        Ok((events, place.unwrap_or_else(|| after.clone())))
    }

    /// The next events in the order `(xid, event_id)`, none of a transaction that others may still precede. Two statements: the
    /// horizon first, the events in a younger snapshot.
    pub async fn list_events(
        &self,
        after: &EventPlace,
        limit: i64,
    ) -> Result<Vec<Event>, StoreError> {
        Ok(retry!(self.read_events(after, limit).await)?.0)
    }

    async fn read_events(
        &self,
        after: &EventPlace,
        limit: i64,
    ) -> Result<(Vec<Event>, Option<EventPlace>), StoreError> {
        let client = self.client().await?;
        let horizon: String = get(&READ_EVENT_HORIZON.one(&client, &[]).await?, "horizon");
        let rows =
            LIST_EVENTS.rows(&client, &[&after.xid, &after.event_id, &horizon, &limit]).await?;
        let place =
            rows.last().map(|r| EventPlace { xid: get(r, "xid"), event_id: get(r, "event_id") });
        let events = rows.iter().map(rows::event).collect::<Result<_, _>>()?;
        Ok((events, place))
    }
}
