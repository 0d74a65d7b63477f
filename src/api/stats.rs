//! Figures of the whole fleet.

use std::sync::Arc;

use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call},
    detached, ok, v1,
};
use crate::coordinator::Replica;

/// `/api/v1/stats`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    v1().and(warp::path!("stats"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call| detached(stats(call)))
        .boxed()
}

async fn stats(call: Call) -> Answer {
    call.reader().await?;
    ok(&call.replica.store.read_stats().await?)
}
