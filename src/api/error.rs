//! The one place that turns errors into HTTP: `{"error": "<one plain sentence>", "code": "<snake_case>"}`.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::json;
use warp::{
    http::{HeaderValue, StatusCode, header},
    reply::{Reply, Response},
};

use crate::{
    model::{InvalidCapability, InvalidText, Status, UnknownWord},
    store::{OperatorRefusal, Refusal, StoreError},
    telemetry::error_chain,
};

/// What a client is told. Never internals, SQL or a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// 400: the request is wrong in a way that its sender can mend.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 400 with a code of its own.
    pub(super) fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400: the state machine does not allow it.
    pub(super) fn illegal_transition(from: Status, act: &str) -> Self {
        Self::refused("illegal_transition", format!("a task that is {from} cannot be {act}"))
    }

    /// 401: no credential, or an unknown one.
    pub(super) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// 401 with a code of its own: a webhook.
    pub(super) fn webhook(code: &'static str, message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, message)
    }

    /// 403: the credential is known but may not do this.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404: no such thing.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 405.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this address does not take that method; see docs/api.md",
        )
    }

    /// 409: the caller does not hold the lease (any more).
    pub(super) fn lease_lost() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "lease_lost",
            "you do not hold this task's lease any more; stop working on it",
        )
    }

    /// 409: any other call of an ended session.
    pub(super) fn session_ended() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "session_ended",
            "your session has ended; register again with your token",
        )
    }

    /// 409: a key reused for another body.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 413.
    pub(super) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is over the limit of {} MiB", limit >> 20),
        )
    }

    /// 415.
    pub(super) fn not_json() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "the body must be JSON; send it with `Content-Type: application/json`",
        )
    }

    /// 503: come back later.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// 503: as much is under way as may be.
    pub(super) fn overloaded() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "this replica has as many connections or requests as it may; try again in a moment",
        )
    }

    /// 429: so many requests of one agent are under way.
    pub(super) fn too_many_requests(limit: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            format!(
                "this agent has {limit} requests under way, and may have no more; wait for their replies"
            ),
        )
    }

    /// 408: the body did not come in time.
    pub(super) fn body_timeout(limit: Duration) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("the body did not arrive within {} s", limit.as_secs_f64()),
        )
    }

    /// 503: the database is away.
    pub(super) fn database_away() -> Self {
        Self::unavailable("the database is away; try again in a moment")
    }

    /// 500: our mistake; the log has it.
    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server made a mistake; its log says more",
        )
    }

    /// The same, for an item of an array.
    pub(super) fn in_item(mut self, place: usize) -> Self {
        self.message = format!("item {place}: {}", self.message);
        self
    }

    /// The body, for an item of a batch or a whole reply.
    pub(super) fn body(&self) -> serde_json::Value {
        json!({"error": self.message, "code": self.code})
    }
}

impl Reply for ApiError {
    fn into_response(self) -> Response {
        let mut response =
            warp::reply::with_status(warp::reply::json(&self.body()), self.status).into_response();
        let headers = response.headers_mut();
        let retry_after = match self.status {
            StatusCode::SERVICE_UNAVAILABLE => Some("2"),
            StatusCode::TOO_MANY_REQUESTS => Some("1"),
            _ => None,
        };
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> Self {
        if matches!(error, StoreError::Busy) {
            Self::unavailable(
                "as many lists of tasks and statistics are being read as may be; try again in a moment",
            )
        } else if error.is_unavailable() {
            log_outage(error);
            Self::database_away()
        } else {
            tracing::error!(error = %error_chain(error), "a request failed");
            Self::internal()
        }
    }
}

/// At most once a second: all requests meet the same outage.
fn log_outage(error: &StoreError) {
    static LAST: Mutex<(Option<Instant>, u64)> = Mutex::new((None, 0));
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let (at, others) = &mut *last;
    if at.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
        *others += 1;
        return;
    }
    *at = Some(Instant::now());
    let others = std::mem::take(others);
    drop(last);
    tracing::warn!(error = %error_chain(error), since_last = others, "a request could not be served: the database is away");
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

/// Of a batch, whose error each of its callers is told.
impl From<std::sync::Arc<StoreError>> for ApiError {
    fn from(error: std::sync::Arc<StoreError>) -> Self {
        Self::from(&*error)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Self::not_found("there is no such task"),
            Refusal::LeaseLost => Self::lease_lost(),
            Refusal::OnHost => Self::refused(
                "illegal_transition",
                "the task runs on a host (ssh_cli); its status is not an agent's to say",
            ),
        }
    }
}

impl ApiError {
    /// An operator's act that did nothing; `act` as in "cannot be cancelled".
    pub(super) fn operator(refusal: OperatorRefusal, act: &str) -> Self {
        match refusal {
            OperatorRefusal::Missing => Self::not_found("there is no such task"),
            OperatorRefusal::Status(from) => Self::illegal_transition(from, act),
        }
    }
}

impl From<InvalidText> for ApiError {
    fn from(error: InvalidText) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<InvalidCapability> for ApiError {
    fn from(error: InvalidCapability) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// A word of the query that is none of the known ones.
pub(super) fn bad_word(field: &str, error: &UnknownWord) -> ApiError {
    ApiError::bad_request(format!("{field}: {error}"))
}
