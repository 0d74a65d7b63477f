//! One call: its headers, query and body, read within limits, and who makes it.

use std::sync::{Arc, OnceLock};

use bytes::{Buf, BytesMut};
use futures_util::{Stream, TryStreamExt};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use subtle::ConstantTimeEq;
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
};
use crate::{
    config::{AuthMode, Secret},
    coordinator::Replica,
    model::{Actor, AgentId, SessionId, TaskRef, Traceparent},
    store::{AgentSession, TokenOwner},
};

/// Bytes of an ordinary body.
pub(super) const BODY: usize = 1 << 20;
/// Bytes of receipts, output and webhooks.
pub(super) const LARGE_BODY: usize = 5 << 20;

/// Who makes a call.
#[derive(Debug, Clone)]
pub(super) enum Principal {
    /// May do everything; in open mode everybody is one.
    Admin,
    /// May read, create, assign, retry, cancel.
    Operator,
    /// May read.
    Viewer,
    /// May register an agent.
    Enrollment,
    /// May make the calls of every agent.
    SharedAgent,
    /// An agent, with the token it has now or had before.
    Agent(TokenOwner),
}

/// A call whose body has been read.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) replica: Arc<Replica>,
    pub(super) headers: HeaderMap,
    pub(super) body: Result<Vec<u8>, ApiError>,
    query: String,
    principal: OnceCell<Principal>,
    limits: Option<Arc<Limits>>,
    /// One of the requests that are worked on; or why it is not: there are too many, or its body is late.
    admitted: Result<Option<OwnedSemaphorePermit>, ApiError>,
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

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Who makes the call; found out once. Renews the session of an agent. Handlers ask this before they read the body: who
    /// may not ask learns nothing from its errors.
    pub(super) async fn principal(&self) -> Result<&Principal, ApiError> {
        self.principal.get_or_try_init(|| self.find_principal()).await
    }

    /// From now on this call waits for something to happen and costs nothing: others may be worked on meanwhile.
    pub(super) fn wait(&mut self) {
        if let Ok(permit) = &mut self.admitted {
            *permit = None;
        }
    }

    /// Counts this call as one of the agent's.
    fn count_for(&self, session: SessionId) -> Result<(), ApiError> {
        if let Some(limits) = &self.limits
            && self.of_agent.get().is_none()
        {
            let permit = limits.admit_agent(session)?;
            // A call is looked at by one at a time.
            let _ = self.of_agent.set(permit);
        }
        Ok(())
    }

    async fn find_principal(&self) -> Result<Principal, ApiError> {
        if let Err(refused) = &self.admitted {
            return Err(refused.clone());
        }
        let open = self.replica.config.auth.mode == AuthMode::Open;
        if open {
            self.refuse_foreign()?;
        }
        let Some(token) = self.bearer()? else {
            return if open {
                Ok(Principal::Admin)
            } else {
                Err(ApiError::unauthorized("this call needs `Authorization: Bearer <token>`"))
            };
        };
        let digest = crate::store::token_digest(token);
        let auth = &self.replica.config.auth;
        for (tokens, principal) in [
            (&auth.admin_token, Principal::Admin),
            (&auth.operator_token, Principal::Operator),
            (&auth.viewer_token, Principal::Viewer),
            (&auth.enrollment_token, Principal::Enrollment),
            (&auth.shared_agent_token, Principal::SharedAgent),
        ] {
            if is_one_of(tokens, &digest) {
                return Ok(principal);
            }
        }
        match self.replica.find_owner(digest).await? {
            Some(owner) => {
                self.count_for(owner.agent.session)?;
                if owner.current && owner.agent.live {
                    self.replica.heartbeats.touch(owner.agent.session);
                }
                Ok(Principal::Agent(owner))
            }
            None if open => Ok(Principal::Admin),
            None => Err(ApiError::unauthorized("this token is not known here")),
        }
    }

    fn bearer(&self) -> Result<Option<&str>, ApiError> {
        let Some(value) = self.headers.get(header::AUTHORIZATION) else { return Ok(None) };
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        match token {
            Some(token) if !token.is_empty() => Ok(Some(token)),
            _ => Err(ApiError::unauthorized(
                "the credential must be `Authorization: Bearer <token>`",
            )),
        }
    }

    /// The digest of the credential.
    pub(super) fn bearer_digest(&self) -> Result<[u8; 32], ApiError> {
        let token =
            self.bearer()?.ok_or_else(|| ApiError::unauthorized("this call needs a token"))?;
        Ok(crate::store::token_digest(token))
    }

    /// Open mode is for this machine only: a page in a browser, or a proxy, is not it.
    fn refuse_foreign(&self) -> Result<(), ApiError> {
        let foreign = |what: &str| {
            Err(ApiError::forbidden(format!(
                "open mode serves this machine only, and the request has a foreign {what}; use auth.mode = \"token\""
            )))
        };
        let forwarded = self
            .headers
            .keys()
            .any(|name| name == header::FORWARDED || name.as_str().starts_with("x-forwarded-"));
        if forwarded {
            return foreign("Forwarded header");
        }
        if self.header("host").is_some_and(|host| !is_loopback(host)) {
            return foreign("Host");
        }
        if self.headers.contains_key(header::ORIGIN)
            && !self.header("origin").is_some_and(|origin| {
                origin.split_once("://").is_some_and(|(_, host)| is_loopback(host))
            })
        {
            return foreign("Origin");
        }
        Ok(())
    }

    /// Any GET: viewer and above.
    pub(super) async fn reader(&self) -> Result<(), ApiError> {
        match self.principal().await? {
            Principal::Admin | Principal::Operator | Principal::Viewer => Ok(()),
            Principal::Enrollment | Principal::SharedAgent | Principal::Agent(_) => {
                Err(ApiError::forbidden("this call needs the viewer, operator or admin token"))
            }
        }
    }

    /// Create, assign, retry, cancel: operator and above.
    pub(super) async fn operator(&self) -> Result<Actor, ApiError> {
        match self.principal().await? {
            Principal::Admin => Ok(Actor::Operator("admin")),
            Principal::Operator => Ok(Actor::Operator("operator")),
            _ => Err(ApiError::forbidden("this call needs the operator or admin token")),
        }
    }

    /// Drain, resume, delete: admin only.
    pub(super) async fn admin(&self) -> Result<(), ApiError> {
        match self.principal().await? {
            Principal::Admin => Ok(()),
            _ => Err(ApiError::forbidden("this call needs the admin token")),
        }
    }

    /// A call of an agent, by its own token or the shared one, or for it by admin. 404 for an agent that is unknown, 403
    /// for another's.
    pub(super) async fn agent(&self, agent_id: &str) -> Result<AgentSession, ApiError> {
        match self.principal().await? {
            Principal::Admin | Principal::SharedAgent => {
                // Nobody has such a name, and the database does not even take every text.
                AgentId::parse(agent_id).map_err(|e| ApiError::bad_request(e.to_string()))?;
                let agent = self.replica.find_session(agent_id).await?;
                let agent = agent.ok_or_else(|| {
                    ApiError::not_found("there is no such agent; register it first")
                })?;
                self.count_for(agent.session)?;
                if agent.live {
                    self.replica.heartbeats.touch(agent.session);
                }
                Ok(agent)
            }
            Principal::Agent(owner) if owner.agent.agent_id.as_str() == agent_id => {
                // The token before belongs to a session that has been replaced.
                Ok(AgentSession { live: owner.agent.live && owner.current, ..owner.agent.clone() })
            }
            Principal::Agent(_) => Err(ApiError::forbidden("this token is another agent's")),
            _ => Err(ApiError::forbidden("this call needs the agent's own token")),
        }
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
    crate::model::check_text("task_id", &text, 500)?;
    Ok(TaskRef::parse(&text))
}

/// Compares digests in constant time, and all of them.
fn is_one_of(tokens: &[Secret], given: &[u8; 32]) -> bool {
    tokens
        .iter()
        .map(|token| crate::store::token_digest(token.expose()).ct_eq(given))
        .fold(subtle::Choice::from(0), |any, one| any | one)
        .into()
}

/// `localhost`, `127.0.0.0/8` or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for host in
            ["localhost", "localhost:9090", "127.0.0.1:1", "127.9.9.9", "[::1]:9090", "[::1]"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["example.org", "localhost.example.org", "10.0.0.1:9090", "", "127.0.0.1.example.org"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn one_of_several_tokens() {
        let tokens = [Secret::new("a"), Secret::new("b")];
        let digest = crate::store::token_digest;
        assert!(is_one_of(&tokens, &digest("a")) && is_one_of(&tokens, &digest("b")));
        assert!(!is_one_of(&tokens, &digest("c")) && !is_one_of(&[], &digest("")));
    }

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
