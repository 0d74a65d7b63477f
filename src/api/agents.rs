//! Agents: register, heartbeat, deregister, list.

use std::sync::Arc;

use rand::RngExt;
use serde::Deserialize;
use serde_json::{Value, json};
use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, Principal, call},
    detached,
    error::{ApiError, bad_word},
    ok, page, render, v1,
};
use crate::{
    coordinator::Replica,
    model::{Actor, AgentId, CapabilitySet, SessionId, TaskId, TaskRef, check_text},
    store::{
        AgentFilter, Credential, EndLease, Outcome, RegisterRefused, Registered, Registration,
        token_digest,
    },
};

/// Bytes of a type or host name, and of metadata as JSON.
const MAX_NAME: usize = 255;
const MAX_METADATA: usize = 16 << 10;
/// Tasks that a registration may name.
const MAX_RESUME: usize = 10_000;

/// `/api/v1/agents…`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let register = v1()
        .and(warp::path!("agents" / "register"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|call| detached(register(call)));
    let heartbeat = v1()
        .and(warp::path!("agents" / "heartbeat"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|call| detached(heartbeat(call)));
    let deregister = v1()
        .and(warp::path!("agents" / "deregister"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|call| detached(deregister(call)));
    let list = v1()
        .and(warp::path!("agents"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|call: Call| async move { render(list(call).await) });
    let show = v1()
        .and(warp::path!("agents" / String))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|id: String, call: Call| async move { render(show(call, &id).await) });
    register.or(heartbeat).unify().or(deregister).unify().or(list).unify().or(show).unify().boxed()
}

#[derive(Debug, Deserialize)]
struct RegisterBody {
    agent_id: String,
    agent_type: String,
    hostname: String,
    #[serde(default)]
    capabilities: Vec<String>,
    max_concurrency: Option<i64>,
    metadata: Option<Value>,
    #[serde(default)]
    resume: Vec<String>,
}

impl RegisterBody {
    fn check(&self) -> Result<Registration, ApiError> {
        let agent_id =
            AgentId::parse(&self.agent_id).map_err(|e| ApiError::bad_request(e.to_string()))?;
        check_text("agent_type", &self.agent_type, MAX_NAME)?;
        check_text("hostname", &self.hostname, MAX_NAME)?;
        let max_concurrency = match self.max_concurrency.unwrap_or(1) {
            n @ 1..=10_000 => i32::try_from(n).unwrap_or(1),
            _ => {
                return Err(ApiError::bad_request(
                    "max_concurrency: must be a whole number from 1 to 10000",
                ));
            }
        };
        let metadata = self.metadata.clone().unwrap_or_else(|| json!({}));
        if !metadata.is_object() {
            return Err(ApiError::bad_request("metadata: must be a JSON object"));
        }
        check_text("metadata", &metadata.to_string(), MAX_METADATA)?;
        if holds_nul(&metadata) {
            return Err(crate::model::InvalidText::Nul { field: "metadata" }.into());
        }
        if self.resume.len() > MAX_RESUME {
            return Err(ApiError::bad_request(format!("resume: at most {MAX_RESUME} tasks")));
        }
        for name in &self.resume {
            check_text("resume", name, 500)?;
        }
        Ok(Registration {
            agent_id,
            agent_type: self.agent_type.clone(),
            hostname: self.hostname.clone(),
            capabilities: CapabilitySet::offered(&self.capabilities)?,
            max_concurrency,
            metadata,
        })
    }
}

/// PostgreSQL's `jsonb` cannot hold U+0000 in any text.
fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

async fn register(call: Call) -> Answer {
    let principal = call.principal().await?;
    let credential = match principal {
        Principal::Admin => Credential::Admin,
        Principal::Enrollment => Credential::Enrollment,
        // Which of its tokens it is was found out by its digest; the store checks again under the lock.
        Principal::Agent(_) => Credential::Token(call.bearer_digest()?),
        Principal::Operator | Principal::Viewer => {
            return Err(ApiError::forbidden(
                "registering needs the enrollment or admin token, or the agent's own",
            ));
        }
    };
    let body: RegisterBody = call.json()?;
    if matches!(principal, Principal::Agent(owner) if owner.agent.agent_id.as_str() != body.agent_id)
    {
        return Err(ApiError::forbidden("this token is another agent's"));
    }
    let registration = body.check()?;
    let replica = &call.replica;
    let token = hex::encode(rand::rng().random::<[u8; 32]>());
    let ttl = replica.config.lease.agent_ttl();
    let registered = replica
        .store
        .register_agent(&registration, credential, &token_digest(&token), ttl)
        .await?
        .map_err(|refused| match refused {
            RegisterRefused::Taken => ApiError::forbidden(
                "this agent_id is taken; register it again with its own token, or choose another",
            ),
            RegisterRefused::Host => {
                ApiError::conflict("this agent_id is a configured host's; choose another")
            }
        })?;
    let (resumed, lost) = resume(&call, &body, &registered).await?;
    tracing::info!(agent.id = body.agent_id, session.id = %registered.session, resumed = resumed.len(), "agent registered");
    replica.wake.ready();
    ok(&json!({
        "agent_id": body.agent_id,
        "registry_token": token,
        "heartbeat_interval_secs": replica.config.lease.heartbeat_interval.as_secs().max(1),
        "resumed": resumed,
        "lost": lost,
    }))
}

/// What the agent still works on passes to its new session; what else the old one held goes back to the queue. Returns
/// what was resumed, and what of its list is not its any more.
async fn resume(
    call: &Call,
    body: &RegisterBody,
    registered: &Registered,
) -> Result<(Vec<Value>, Vec<String>), ApiError> {
    let store = &call.replica.store;
    let mut asked: Vec<(TaskId, String)> = Vec::new();
    let mut lost: Vec<String> = Vec::new();
    for name in &body.resume {
        match store.resolve(&TaskRef::parse(name)).await? {
            Some(id) => asked.push((id, name.clone())),
            None => lost.push(name.clone()),
        }
    }
    asked.sort();
    asked.dedup_by_key(|(id, _)| *id);
    let ids: Vec<TaskId> = asked.iter().map(|(id, _)| *id).collect();
    let actor = Actor::Agent(body.agent_id.clone());
    let mut kept = Vec::new();
    for session in &registered.replaced {
        if !ids.is_empty() {
            kept.extend(store.resume_leases(&ids, *session, registered.session, &actor).await?);
        }
        let reason = "its agent registered anew";
        give_back(&call.replica, *session, &body.agent_id, Outcome::Lost, reason).await?;
    }
    lost.extend(
        asked
            .into_iter()
            .filter(|(id, _)| !kept.iter().any(|(k, _)| k == id))
            .map(|(_, name)| name),
    );
    let resumed = kept.iter().map(|(id, lease)| json!({"task_id": id, "lease": lease})).collect();
    Ok((resumed, lost))
}

/// What a session holds goes back to the queue.
async fn give_back(
    replica: &Replica,
    session: SessionId,
    agent_id: &str,
    outcome: Outcome,
    reason: &str,
) -> Result<(), ApiError> {
    let held = replica.store.list_session_leases(session).await?;
    for batch in held.chunks(200) {
        let ends: Vec<EndLease> = batch
            .iter()
            .map(|held| EndLease {
                held: *held,
                outcome,
                reason: Some(reason.to_owned()),
                wait_secs: None,
                receipt: None,
                actor: Actor::Agent(agent_id.to_owned()),
            })
            .collect();
        replica.store.end_leases(&ends, replica.config.tasks.retry_backoff).await?;
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct AgentBody {
    agent_id: String,
}

async fn heartbeat(call: Call) -> Answer {
    call.principal().await?;
    let body: AgentBody = call.json()?;
    let agent = call.agent(&body.agent_id).await?;
    let replica = &call.replica;
    // Written at once: an answer of 200 means that the session lives.
    if !agent.live || replica.store.touch_sessions(&[agent.session]).await?.is_empty() {
        return Err(ApiError::session_ended());
    }
    let cancel = replica.store.list_cancel_notices(agent.session).await?;
    let status = find(replica, &body.agent_id).await?.status;
    ok(&json!({"status": status, "cancel": cancel, "lost": [], "drain": false}))
}

async fn deregister(call: Call) -> Answer {
    call.principal().await?;
    let body: AgentBody = call.json()?;
    let agent = call.agent(&body.agent_id).await?;
    if !agent.live {
        return Err(ApiError::session_ended());
    }
    let replica = &call.replica;
    replica.store.end_session(agent.session, "deregistered").await?;
    give_back(replica, agent.session, &body.agent_id, Outcome::Released, "its agent deregistered")
        .await?;
    tracing::info!(agent.id = body.agent_id, session.id = %agent.session, "agent deregistered");
    replica.wake.ready();
    ok(&json!({"agent_id": body.agent_id, "status": "offline"}))
}

async fn find(replica: &Replica, agent_id: &str) -> Result<crate::model::Agent, ApiError> {
    let filter =
        AgentFilter { agent_id: Some(agent_id.to_owned()), limit: 1, ..AgentFilter::default() };
    let found = replica.store.list_agents(&filter).await?.pop();
    found.ok_or_else(|| ApiError::not_found("there is no such agent"))
}

async fn list(call: Call) -> Answer {
    call.reader().await?;
    let limit = call.limit()?;
    let status = call.query("status")?;
    let filter = AgentFilter {
        agent_id: None,
        status: status.map(|s| s.parse().map_err(|e| bad_word("status", &e))).transpose()?,
        capability: call.query("capability")?,
        after: call.query("cursor")?,
        limit,
    };
    let agents = call.replica.store.list_agents(&filter).await?;
    page(&agents, limit, |agent| agent.agent_id.to_string())
}

async fn show(call: Call, id: &str) -> Answer {
    call.reader().await?;
    ok(&find(&call.replica, id).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_found_and_its_escape_is_text() {
        for bad in [json!({"a": "x\u{0}"}), json!({"a": [{"b\u{0}": 1}]})] {
            assert!(holds_nul(&bad), "{bad}");
        }
        assert!(!holds_nul(&json!({"a": ["\\u0000", 1, null, true]})));
    }
}
