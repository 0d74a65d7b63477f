//! Hosts, as the fleet sees them.

use std::sync::Arc;

use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call},
    page, render, v1,
};
use crate::coordinator::Replica;

/// `/api/v1/hosts`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    v1().and(warp::path!("hosts"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call: Call| async move { render(list(call).await) })
        .boxed()
}

async fn list(call: Call) -> Answer {
    call.reader().await?;
    let limit = call.limit()?;
    let after = call.query("cursor")?;
    let hosts = call.replica.store.list_hosts(after.as_deref(), limit).await?;
    page(&hosts, limit, |host| host.host_id.clone())
}
