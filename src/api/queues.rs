//! Queues: the lanes, paused and resumed.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call},
    detached,
    error::ApiError,
    ok, v1,
};
use crate::{
    coordinator::Replica,
    model::{CapabilitySet, requirement_of_label},
};

/// `/api/v1/queues/…`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let pause = v1()
        .and(warp::path!("queues" / "pause"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|call| detached(set_paused(call, true)));
    let resume = v1()
        .and(warp::path!("queues" / "resume"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|call| detached(set_paused(call, false)));
    pause.or(resume).unify().boxed()
}

#[derive(Debug, Deserialize)]
struct QueueBody {
    capabilities: Vec<String>,
}

async fn set_paused(call: Call, paused: bool) -> Answer {
    call.admin().await?;
    let body: QueueBody = call.json()?;
    if let Some(name) = body.capabilities.iter().find(|c| requirement_of_label(c).is_none()) {
        return Err(ApiError::bad_request(format!(
            "capabilities: `{}` is no requirement; those begin with `agent:`",
            name.escape_debug()
        )));
    }
    let set = CapabilitySet::required(&body.capabilities)?;
    call.replica.store.set_lane_paused(&set, paused).await?;
    if !paused {
        call.replica.wake_ready();
    }
    ok(&json!({"capabilities": set, "paused": paused}))
}
