//! One call: its headers, query and body, read within limits. Who makes it is in [`super::principal`].

use std::sync::{Arc, OnceLock};

use bytes::{Buf, BytesMut};
use futures_util::{Stream, TryStreamExt};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use warp::{
    Filter,
    filters::BoxedFilter,
    http::{HeaderMap, header},
};

use super::{
    edge::Connection,
    error::ApiError,
    limits::{AgentPermit, Limits},
    principal::Principal,
};
use crate::{
    coordinator::Replica,
    model::{SessionId, TaskRef, Traceparent},
};

/// Bytes of an ordinary body.
pub(super) const BODY: usize = 1 << 20;
/// Bytes of receipts, output and webhooks.
pub(super) const LARGE_BODY: usize = 5 << 20;

/// A call whose body has been read.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) replica: Arc<Replica>,
    pub(super) headers: HeaderMap,
    pub(super) body: Result<Vec<u8>, ApiError>,
    query: String,
    /// Found out once.
    pub(super) principal: OnceCell<Principal>,
    limits: Option<Arc<Limits>>,
    /// One of the requests that are worked on; or why it is not: there are too many, or its body is late.
    pub(super) admitted: Result<Option<OwnedSemaphorePermit>, ApiError>,
    /// One of the agent's.
    of_agent: OnceLock<AgentPermit>,
}

/// Takes a call with a body of at most `limit` bytes.
pub(super) fn call(replica: &Arc<Replica>, limit: usize) -> BoxedFilter<(Call,)> {
    take(replica, limit, |limits| limits.admit().map(Some))
}

/// The same for heartbeats, which are counted apart.
pub(super) fn heartbeat_call(replica: &Arc<Replica>, limit: usize) -> BoxedFilter<(Call,)> {
    take(replica, limit, |limits| limits.admit_heartbeat().map(Some))
}

/// The same for calls that are not counted.
pub(super) fn exempt_call(replica: &Arc<Replica>, limit: usize) -> BoxedFilter<(Call,)> {
    take(replica, limit, |_| Ok(None))
}

fn take(
    replica: &Arc<Replica>,
    limit: usize,
    admit: fn(&Limits) -> Result<Option<OwnedSemaphorePermit>, ApiError>,
) -> BoxedFilter<(Call,)> {
    let replica = Arc::clone(replica);
    warp::any()
        .map(move || Arc::clone(&replica))
        .and(warp::ext::optional())
        .and(warp::header::headers_cloned())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::body::stream())
        .then(
            move |replica, connection: Option<Arc<Connection>>, headers, query, body| async move {
                let hold = |bytes| {
                    if let Some(connection) = &connection {
                        connection.hold(bytes);
                    }
                };
                let reading = read_body(&headers, body, limit, hold);
                // Counted only when it is there: a client that is slow with its body costs nobody else anything.
                let (body, admitted, limits) = match &connection {
                    None => (reading.await, Ok(None), None),
                    Some(connection) => {
                        let read = tokio::time::timeout(connection.patience, reading).await;
                        connection.work();
                        let late = || ApiError::body_timeout(connection.patience);
                        let admitted = read
                            .as_ref()
                            .map_err(|_| late())
                            .and_then(|_| admit(&connection.limits));
                        let limits = Some(Arc::clone(&connection.limits));
                        (read.unwrap_or_else(|_| Err(late())), admitted, limits)
                    }
                };
                Call {
                    replica,
                    headers,
                    body,
                    query,
                    principal: OnceCell::new(),
                    limits,
                    admitted,
                    of_agent: OnceLock::new(),
                }
            },
        )
        .boxed()
}

/// `hold` is told how much there is of a body that is not yet whole.
async fn read_body<S, B>(
    headers: &HeaderMap,
    body: S,
    limit: usize,
    hold: impl Fn(usize),
) -> Result<Vec<u8>, ApiError>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(ApiError::too_large(limit));
    }
    // Not only the announced length: a chunked body announces none.
    let mut bytes = BytesMut::new();
    let mut body = std::pin::pin!(body);
    while let Some(mut part) =
        body.try_next().await.map_err(|_| ApiError::bad_request("the body was cut off"))?
    {
        while part.has_remaining() {
            let chunk = part.chunk();
            bytes.extend_from_slice(chunk);
            let read = chunk.len();
            part.advance(read);
            if bytes.len() > limit {
                return Err(ApiError::too_large(limit));
            }
            hold(bytes.len());
        }
    }
    Ok(bytes.to_vec())
}

impl Call {
    /// The body, which must say that it is JSON.
    pub(super) fn json_bytes(&self) -> Result<&[u8], ApiError> {
        let content_type = self
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let is_json = essence.eq_ignore_ascii_case("application/json")
            || (essence.starts_with("application/") && essence.ends_with("+json"));
        let body = self.body.as_deref().map_err(Clone::clone)?;
        if is_json { Ok(body) } else { Err(ApiError::not_json()) }
    }

    /// The body as JSON. A missing or mistyped field is named; unknown ones are ignored; null counts as absent.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        from_value(self.json_value()?)
    }

    /// The body as any JSON.
    pub(super) fn json_value(&self) -> Result<Value, ApiError> {
        let bytes = self.json_bytes()?;
        serde_json::from_slice(bytes)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))
    }

    /// A parameter of the query, percent-decoded; empty counts as absent.
    pub(super) fn query(&self, name: &'static str) -> Result<Option<String>, ApiError> {
        for pair in self.query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if key == name && !value.is_empty() {
                let value = value.replace('+', " ");
                let text = percent_decode_str(&value).decode_utf8().map_err(|_| {
                    ApiError::bad_request(format!("the parameter {name} is not UTF-8"))
                })?;
                crate::model::check_text(name, &text, 1_000)?;
                return Ok(Some(text.into_owned()));
            }
        }
        Ok(None)
    }

    /// A number in the query, within bounds.
    pub(super) fn query_number(
        &self,
        name: &'static str,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.query(name)? else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::bad_request(format!(
                "the parameter {name} must be a whole number from {} to {}",
                bounds.start(),
                bounds.end()
            ))),
        }
    }

    /// `?limit`: 50 unless given, at most 500.
    pub(super) fn limit(&self) -> Result<i64, ApiError> {
        Ok(self.query_number("limit", 1..=500)?.unwrap_or(50))
    }

    /// The trace that the caller is in. One that is malformed, or given twice, is as none.
    pub(super) fn traceparent(&self) -> Option<Traceparent> {
        let mut given = self.headers.get_all("traceparent").iter();
        let (one, another) = (given.next()?, given.next());
        if another.is_some() { None } else { one.to_str().ok()?.trim().parse().ok() }
    }

    /// From now on this call waits for something to happen and costs nothing: others may be worked on meanwhile.
    pub(super) fn wait(&mut self) {
        if let Ok(permit) = &mut self.admitted {
            *permit = None;
        }
    }

    /// Counts this call as one of the agent's.
    pub(super) fn count_for(&self, session: SessionId) -> Result<(), ApiError> {
        if let Some(limits) = &self.limits
            && self.of_agent.get().is_none()
        {
            let permit = limits.admit_agent(session)?;
            // A call is looked at by one at a time.
            let _ = self.of_agent.set(permit);
        }
        Ok(())
    }
}

/// A value as a type, the bad field named.
pub(super) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    let Value::Object(mut map) = value else {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    };
    map.retain(|_, value| !value.is_null());
    serde_path_to_error::deserialize(Value::Object(map)).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        ApiError::bad_request(if path == "." {
            inner.to_string()
        } else {
            format!("{path}: {inner}")
        })
    })
}

/// A path segment, percent-decoded, as a task's id or key.
pub(super) fn task_ref(segment: &str) -> Result<TaskRef, ApiError> {
    let text = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| ApiError::bad_request("the task's key is not UTF-8"))?;
    body_task_ref(&text)
}

/// The `task_id` of a body, as it stands, as a task's id or key.
pub(super) fn body_task_ref(text: &str) -> Result<TaskRef, ApiError> {
    crate::model::check_text("task_id", text, 500)?;
    Ok(TaskRef::parse(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_field_is_named() {
        #[derive(Debug, serde::Deserialize)]
        struct Body {
            #[expect(dead_code, reason = "only parsed")]
            title: String,
            #[expect(dead_code, reason = "only parsed")]
            max: Option<i32>,
        }
        let message = |value| from_value::<Body>(value).unwrap_err().body()["error"].to_string();
        assert!(message(serde_json::json!({})).contains("title"));
        assert!(message(serde_json::json!({"title": null})).contains("title"));
        assert!(message(serde_json::json!({"title": "x", "max": "y"})).contains("max"));
        assert!(
            message(serde_json::json!({"title": "x", "max": 5_000_000_000_i64})).contains("max")
        );
        assert!(message(serde_json::json!([])).contains("object"));
        assert!(from_value::<Body>(serde_json::json!({"title": "x", "max": null, "z": 1})).is_ok());
    }
}
