//! What the API says of itself: a file for programs, a page for people. No credential.

use warp::{
    Filter,
    filters::BoxedFilter,
    reply::{Reply, Response},
};

use super::v1;
use crate::web::{OPENAPI, api_page};

/// `/api/v1/openapi.yaml`, `/docs`
pub(super) fn routes() -> BoxedFilter<(Response,)> {
    let file = v1().and(warp::path!("openapi.yaml")).and(warp::get()).map(|| {
        warp::reply::with_header(OPENAPI, "Content-Type", "application/yaml").into_response()
    });
    let page = warp::path!("docs").and(warp::get()).map(|| {
        let page = warp::reply::html(api_page());
        // It needs nothing but its own style.
        let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
        warp::reply::with_header(page, "Content-Security-Policy", policy).into_response()
    });
    file.or(page).unify().boxed()
}
