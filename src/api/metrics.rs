//! The page that Prometheus reads.

use std::sync::Arc;

use warp::{
    Filter,
    filters::BoxedFilter,
    http::header,
    reply::{Reply, Response},
};

use super::{
    Answer,
    call::{BODY, Call, call},
    render,
};
use crate::{
    coordinator::{Replica, gauges},
    metrics,
};

/// `/metrics`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    warp::path!("metrics")
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call: Call| async move { render(page(call).await) })
        .boxed()
}

async fn page(call: Call) -> Answer {
    call.reader().await?;
    let now = gauges::read(&call.replica).await;
    let page =
        warp::reply::with_header(metrics::page(&now), header::CONTENT_TYPE, metrics::CONTENT_TYPE);
    Ok(page.into_response())
}
