//! Hosts, as the fleet sees them: list, check, drain.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    agents::Nothing,
    call::{BODY, Call, call},
    detached,
    error::{ApiError, bad_word},
    ok, page, render,
    tasks::optional_json,
    v1,
};
use crate::{
    coordinator::Replica,
    model::{Host, check_text},
    store::HostFilter,
};

/// How long a check waits for the replicas' probes. A host that does not answer costs a probe about ten seconds.
const CHECK_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks whether they have come.
const CHECK_PAUSE: Duration = Duration::from_millis(250);

/// `/api/v1/hosts…`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let list = v1()
        .and(warp::path!("hosts"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call| detached(list(call)));
    let show = v1()
        .and(warp::path!("hosts" / String))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|id, call| detached(show(call, id)));
    let check = v1()
        .and(warp::path!("hosts" / String / "check"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id: String, call: Call| async move { render(check(call, &id).await) });
    let drain = v1()
        .and(warp::path!("hosts" / String / "drain"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(set_drained(call, id, true)));
    let resume = v1()
        .and(warp::path!("hosts" / String / "resume"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(set_drained(call, id, false)));
    list.or(show).unify().or(check).unify().or(drain).unify().or(resume).unify().boxed()
}

async fn list(call: Call) -> Answer {
    call.reader().await?;
    let limit = call.limit()?;
    let status = call.query("status")?;
    let filter = HostFilter {
        host_id: None,
        status: status.map(|s| s.parse().map_err(|e| bad_word("status", &e))).transpose()?,
        after: call.query("cursor")?,
        limit,
    };
    let hosts = call.replica.store.list_hosts(&filter).await?;
    page(&hosts, limit, |host| host.host_id.clone())
}

async fn find(replica: &Replica, id: &str) -> Result<Host, ApiError> {
    check_text("host_id", id, 500)?;
    let filter = HostFilter { host_id: Some(id.to_owned()), limit: 1, ..HostFilter::default() };
    let found = replica.store.list_hosts(&filter).await?.pop();
    found.ok_or_else(|| ApiError::not_found("there is no such host; hosts are configured"))
}

async fn show(call: Call, id: String) -> Answer {
    call.reader().await?;
    ok(&find(&call.replica, &id).await?)
}

/// Asks every replica that lists the host to probe it now, and waits for what they find.
async fn check(call: Call, id: &str) -> Answer {
    call.operator().await?;
    optional_json::<Nothing>(&call)?;
    let replica = &call.replica;
    let before = find(replica, id).await?;
    replica.wake_probers();
    let seen = |host: &Host, replica_id: &str| -> Option<Timestamp> {
        host.replicas.iter().find(|r| r.replica_id == replica_id)?.checked_at
    };
    let waiting = async {
        loop {
            let now = find(replica, id).await?;
            let all_new = now.replicas.iter().all(|r| r.checked_at > seen(&before, &r.replica_id));
            if all_new || replica.shutdown.sleep(CHECK_PAUSE).await {
                return Ok::<Host, ApiError>(now);
            }
        }
    };
    match tokio::time::timeout(CHECK_LIMIT, waiting).await {
        Ok(host) => ok(&host?),
        // Some replica is still at it; `checked_at` tells which.
        Err(_) => ok(&find(replica, id).await?),
    }
}

async fn set_drained(call: Call, id: String, drained: bool) -> Answer {
    call.admin().await?;
    optional_json::<Nothing>(&call)?;
    check_text("host_id", &id, 500)?;
    let replica = &call.replica;
    if !replica.store.set_host_drained(&id, drained).await? {
        return Err(ApiError::not_found("there is no such host; hosts are configured"));
    }
    tracing::info!(host.id = id, drained, "host drained or resumed");
    replica.wake_ready();
    ok(&find(replica, &id).await?)
}
