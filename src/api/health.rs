//! Whether the process lives, and whether it can serve.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use warp::{
    Filter,
    filters::BoxedFilter,
    http::StatusCode,
    reply::{Reply, Response},
};

use super::{ok, render, v1, with_status};
use crate::coordinator::Replica;

/// Events that are held back for longer are told.
const STALL: Duration = Duration::from_secs(2);

/// `/healthz`, `/readyz`, `/api/v1/version`: no credential.
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let healthz = warp::path!("healthz").and(warp::get()).map(|| "ok".into_response());
    let replica = Arc::clone(replica);
    let readyz = warp::path!("readyz")
        .and(warp::get())
        .map(move || Arc::clone(&replica))
        .then(|replica: Arc<Replica>| async move { render(ready(&replica).await) });
    let version = v1().and(warp::path!("version")).and(warp::get()).map(|| {
        render(ok(&json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")})))
    });
    healthz.or(readyz).unify().or(version).unify().boxed()
}

async fn ready(replica: &Replica) -> super::Answer {
    let away = |error: crate::store::StoreError| {
        tracing::warn!(error = %crate::telemetry::error_chain(&error), "a readiness check failed");
        "the database does not answer".to_owned()
    };
    let (database, is_there) = match replica.store.ping().await {
        Ok(true) => (None, true),
        // Reads are served; what writes is answered 503.
        Ok(false) => (Some("the database is read-only: a standby, or made so".to_owned()), true),
        Err(error) => (Some(away(error)), false),
    };
    let schema = if is_there {
        match replica.store.check_schema().await {
            Ok(()) => None,
            Err(error @ crate::store::StoreError::Schema(_)) => Some(error.to_string()),
            Err(error) => Some(away(error)),
        }
    } else {
        Some("not checked".to_owned())
    };
    let partitions = match &schema {
        Some(_) => Some("not checked".to_owned()),
        None => match replica.store.check_partitions().await {
            Ok(true) => None,
            Ok(false) => Some("the partitions of the coming week are missing".to_owned()),
            Err(error) => Some(away(error)),
        },
    };
    // Without a listener work goes on by polling; it is told, and does not make the replica unready.
    let listener = replica.listening().err();
    // Told as well, since no other replica is better off.
    let notifications = if is_there {
        replica.store.check_notify_queue().await.unwrap_or_else(|error| Some(away(error)))
    } else {
        Some("not checked".to_owned())
    };
    let events = match &partitions {
        Some(_) => Some("not checked".to_owned()),
        None => match replica.store.event_stall().await {
            Ok(stall) => stall.filter(|stall| *stall > STALL).map(|stall| {
                format!(
                    "held back for {} s: a transaction in this database has written and is still open",
                    stall.as_secs()
                )
            }),
            Err(error) => Some(away(error)),
        },
    };
    let draining = replica.shutdown.is_draining().then(|| "this replica stops".to_owned());
    let unready =
        database.is_some() || schema.is_some() || partitions.is_some() || draining.is_some();
    let word = |problem: Option<String>| problem.unwrap_or_else(|| "ok".to_owned());
    let status = if unready { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    with_status(
        status,
        &json!({
            "database": word(database), "schema": word(schema), "listener": word(listener),
            "notifications": word(notifications), "partitions": word(partitions), "events": word(events), "draining": word(draining),
        }),
    )
}
