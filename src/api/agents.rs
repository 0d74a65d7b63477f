//! Agents: register, heartbeat, deregister, list, drain, delete.

use std::{sync::Arc, time::Instant};

use rand::RngExt;
use serde::Deserialize;
use serde_json::{Value, json};
use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, call, heartbeat_call},
    detached,
    error::{ApiError, bad_word},
    ok, page,
    principal::Principal,
    tasks::optional_json,
    v1,
};
use crate::{
    coordinator::{HeartbeatAnswer, Replica, end_unlocked},
    model::{Actor, AgentId, AgentStatus, CapabilitySet, SessionId, TaskId, TaskRef, check_text},
    store::{
        AgentBeat, AgentFilter, Credential, EndLease, HeldLease, Outcome, RegisterRefused,
        Registration, token_digest,
    },
};

/// Bytes of a type or host name, and of metadata as JSON.
const MAX_NAME: usize = 255;
const MAX_METADATA: usize = 16 << 10;
/// Tasks that a registration or a heartbeat may name.
const MAX_TASKS: usize = 10_000;

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
        .and(heartbeat_call(replica, BODY))
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
        .then(|call| detached(list(call)));
    let show = v1()
        .and(warp::path!("agents" / String))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|id, call| detached(show(call, id)));
    let delete = v1()
        .and(warp::path!("agents" / String))
        .and(warp::delete())
        .and(call(replica, BODY))
        .then(|id, call| detached(delete(call, id)));
    let drain = v1()
        .and(warp::path!("agents" / String / "drain"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(set_drained(call, id, true)));
    let resume = v1()
        .and(warp::path!("agents" / String / "resume"))
        .and(warp::post())
        .and(call(replica, BODY))
        .then(|id, call| detached(set_drained(call, id, false)));
    register
        .or(heartbeat)
        .unify()
        .or(deregister)
        .unify()
        .or(list)
        .unify()
        .or(show)
        .unify()
        .or(delete)
        .unify()
        .or(drain)
        .unify()
        .or(resume)
        .unify()
        .boxed()
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

/// Tasks that an agent names, by id or key; `None` for keys that are no task's.
async fn named(
    replica: &Replica,
    field: &'static str,
    names: Vec<String>,
) -> Result<Vec<(String, Option<TaskId>)>, ApiError> {
    if names.len() > MAX_TASKS {
        return Err(ApiError::bad_request(format!("{field}: at most {MAX_TASKS} tasks")));
    }
    for name in &names {
        check_text(field, name, 500)?;
    }
    let refs: Vec<TaskRef> = names.iter().map(|name| TaskRef::parse(name)).collect();
    let ids = replica.store.resolve_all(&refs).await?;
    Ok(names.into_iter().zip(ids).collect())
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
        // Whoever has it is every agent.
        Principal::Admin | Principal::SharedAgent => Credential::Admin,
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
    let mut asked = named(replica, "resume", body.resume).await?;
    asked.sort_by_key(|(_, id)| *id);
    asked.dedup_by(|a, b| a.1.is_some() && a.1 == b.1);
    let ids: Vec<TaskId> = asked.iter().filter_map(|(_, id)| *id).collect();
    let token = hex::encode(rand::rng().random::<[u8; 32]>());
    let ttl = replica.config.lease.agent_ttl();
    let registered = replica
        .store
        .register_agent(&registration, credential, &token_digest(&token), ttl, &ids)
        .await?
        .map_err(|refused| match refused {
            RegisterRefused::Taken => ApiError::forbidden(
                "this agent_id is taken; register it again with its own token, or choose another",
            ),
            RegisterRefused::Host => {
                ApiError::conflict("this agent_id is a configured host's; choose another")
            }
        })?;
    replica.forget_caller(&body.agent_id);
    for session in &registered.replaced {
        let reason = "its agent registered anew";
        give_back(replica, *session, &body.agent_id, Outcome::Lost, reason).await?;
    }
    let is_resumed =
        |id: &Option<TaskId>| registered.resumed.iter().any(|(task, _)| Some(*task) == *id);
    let lost: Vec<String> =
        asked.into_iter().filter(|(_, id)| !is_resumed(id)).map(|(name, _)| name).collect();
    let resumed: Vec<Value> = registered
        .resumed
        .iter()
        .map(|(id, lease)| json!({"task_id": id, "lease": lease}))
        .collect();
    tracing::info!(agent.id = body.agent_id, session.id = %registered.session, resumed = resumed.len(), "agent registered");
    replica.wake_ready();
    ok(&json!({
        "agent_id": body.agent_id,
        "registry_token": token,
        "heartbeat_interval_secs": replica.config.lease.heartbeat_interval.as_secs().max(1),
        "resumed": resumed,
        "lost": lost,
    }))
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
    end_all(replica, &held, agent_id, outcome, reason).await
}

/// Ends leases of an agent in bounded batches. A task that somebody has locked keeps its own for now: who comes or goes does
/// not wait for that, the reaper or the next heartbeat ends it.
async fn end_all(
    replica: &Replica,
    held: &[HeldLease],
    agent_id: &str,
    outcome: Outcome,
    reason: &str,
) -> Result<(), ApiError> {
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
        end_unlocked(replica, ends).await?;
    }
    Ok(())
}

/// The body of a call that needs none.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Nothing {}

#[derive(Debug, Deserialize)]
struct AgentBody {
    agent_id: String,
}

#[derive(Debug, Deserialize)]
struct HeartbeatBody {
    agent_id: String,
    running: Option<Vec<String>>,
}

async fn heartbeat(call: Call) -> Answer {
    let arrived = Instant::now();
    call.principal().await?;
    let body: HeartbeatBody = call.json()?;
    let agent = call.agent(&body.agent_id).await?;
    if !agent.live {
        return Err(ApiError::session_ended());
    }
    let replica = &call.replica;
    let listed = match body.running {
        Some(names) => Some(named(replica, "running", names).await?),
        None => None,
    };
    let running = listed.as_ref().map(|l| l.iter().filter_map(|(_, id)| *id).collect());
    // Written before the answer: 200 means that the session lives.
    let beat = AgentBeat { session: agent.session, running, arrived };
    let heard = match replica.beat_agent(beat).await {
        HeartbeatAnswer::Heard(heard) => heard,
        HeartbeatAnswer::SessionEnded => return Err(ApiError::session_ended()),
        HeartbeatAnswer::Unavailable => return Err(ApiError::database_away()),
    };
    let dropped: Vec<HeldLease> = heard
        .dropped
        .iter()
        // The agent cannot list what it has not been told yet.
        .filter(|(task_id, lease)| {
            replica.can_judge() && !replica.replies.contains(*task_id, *lease)
        })
        .map(|(task_id, lease)| HeldLease {
            task_id: *task_id,
            lease: *lease,
            holder: agent.session,
        })
        .collect();
    if !dropped.is_empty() {
        tracing::warn!(
            agent.id = body.agent_id,
            tasks = dropped.len(),
            "an agent does not list tasks that it holds; they go back to the queue"
        );
        let reason = "its agent no longer lists it";
        end_all(replica, &dropped, &body.agent_id, Outcome::Lost, reason).await?;
        replica.wake_ready();
    }
    let lost: Vec<String> = listed
        .into_iter()
        .flatten()
        .filter(|(_, id)| id.is_none_or(|id| heard.lost.contains(&id)))
        .map(|(name, _)| name)
        .collect();
    let status = if heard.draining { AgentStatus::Draining } else { AgentStatus::Online };
    ok(&json!({"status": status, "cancel": heard.cancelled, "lost": lost, "drain": heard.draining}))
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
    replica.forget_caller(&body.agent_id);
    give_back(replica, agent.session, &body.agent_id, Outcome::Released, "its agent deregistered")
        .await?;
    tracing::info!(agent.id = body.agent_id, session.id = %agent.session, "agent deregistered");
    replica.wake_ready();
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

async fn show(call: Call, id: String) -> Answer {
    call.reader().await?;
    ok(&find(&call.replica, &id).await?)
}

async fn delete(call: Call, id: String) -> Answer {
    call.admin().await?;
    AgentId::parse(&id).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let replica = &call.replica;
    let sessions = replica.store.delete_agent(&id).await?;
    let sessions = sessions.ok_or_else(|| ApiError::not_found("there is no such agent"))?;
    for session in sessions {
        give_back(replica, session, &id, Outcome::Released, "its agent was deleted").await?;
    }
    tracing::info!(agent.id = id, "agent deleted; its id is free");
    // Its polls, wherever they wait, are told.
    replica.forget_caller(&id);
    replica.wake_ready();
    ok(&json!({"agent_id": id, "status": "deleted"}))
}

async fn set_drained(call: Call, id: String, drained: bool) -> Answer {
    call.admin().await?;
    optional_json::<Nothing>(&call)?;
    AgentId::parse(&id).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let replica = &call.replica;
    if !replica.store.set_agent_drained(&id, drained).await? {
        return Err(ApiError::not_found("there is no such agent"));
    }
    tracing::info!(agent.id = id, drained, "agent drained or resumed");
    replica.wake_ready();
    ok(&find(replica, &id).await?)
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
