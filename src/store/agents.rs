//! Agents: registration, tokens, heartbeats.

use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{begin, commit},
    error::retry,
    rows::{get, word},
    statement::{
        BEGIN_SESSION, END_SESSIONS_OF, FIND_AGENT_BY_TOKEN, FIND_AGENT_SESSION, LIST_AGENTS,
        LIST_CANCEL_NOTICES, LOCK_AGENT, UPSERT_AGENT, USE_TOKEN,
    },
};
use crate::model::{Agent, AgentId, AgentStatus, CapabilitySet, SessionId, TaskId};

/// What an agent says of itself.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of POST /api/v1/agents/register")]
pub struct Registration {
    pub agent_id: AgentId,
    pub agent_type: String,
    pub hostname: String,
    pub capabilities: CapabilitySet,
    pub max_concurrency: i32,
    pub metadata: serde_json::Value,
}

/// With what an agent registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// May register anyone.
    Admin,
    /// May register who is new, or has never used its token.
    Enrollment,
    /// The digest of a token; may register whose it is.
    Token([u8; 32]),
}

/// An agent that has just registered.
#[derive(Debug)]
pub struct Registered {
    /// Its new session.
    pub session: SessionId,
    /// The session that this one replaces; its leases go back to the queue.
    pub replaced: Vec<SessionId>,
}

/// Why an agent may not register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterRefused {
    /// The id is another's.
    Taken,
    /// The id is a configured host's.
    Host,
}

/// An agent and its newest session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSession {
    /// Who.
    pub agent_id: AgentId,
    /// Its newest session.
    pub session: SessionId,
    /// False once it has ended.
    pub live: bool,
}

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOwner {
    /// Who, and its newest session.
    pub agent: AgentSession,
    /// False for the token before, which may only register.
    pub current: bool,
}

/// What a list of agents is narrowed to.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields are the query parameters of GET /api/v1/agents")]
pub struct AgentFilter {
    pub agent_id: Option<String>,
    pub status: Option<AgentStatus>,
    pub capability: Option<String>,
    /// Only ids above: the next page.
    pub after: Option<String>,
    /// How many, at most.
    pub limit: i64,
}

impl Store {
    /// Registers an agent: a new session and a new token, given as its digest. The caller ends the leases of the replaced session.
    pub async fn register_agent(
        &self,
        registration: &Registration,
        credential: Credential,
        token_digest: &[u8; 32],
        ttl: Duration,
    ) -> Result<Result<Registered, RegisterRefused>, StoreError> {
        let mut tries = 0;
        loop {
            match retry!(self.register_once(registration, credential, token_digest, ttl).await) {
                // The same agent registers elsewhere at this moment; the later one replaces the earlier.
                Err(e) if tries < 5 && e.is_unique_violation("sessions_live") => tries += 1,
                result => return result,
            }
        }
    }

    async fn register_once(
        &self,
        registration: &Registration,
        credential: Credential,
        token_digest: &[u8; 32],
        ttl: Duration,
    ) -> Result<Result<Registered, RegisterRefused>, StoreError> {
        let agent_id = registration.agent_id.as_str();
        if self.is_host_id(agent_id).await? {
            return Ok(Err(RegisterRefused::Host));
        }
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let ended = END_SESSIONS_OF.rows(&tx, &[&"agent", &agent_id, &"registered anew"]).await?;
        if let Some(known) = LOCK_AGENT.row(&tx, &[&agent_id]).await? {
            let allowed = match credential {
                Credential::Admin => true,
                Credential::Enrollment => {
                    !get::<bool>(&known, "token_used")
                        && get::<Option<Vec<u8>>>(&known, "previous_token_digest").is_none()
                }
                Credential::Token(digest) => {
                    let is = |column| {
                        get::<Option<Vec<u8>>>(&known, column)
                            .is_some_and(|d| bool::from(d.ct_eq(&digest)))
                    };
                    is("token_digest") || is("previous_token_digest")
                }
            };
            if !allowed {
                return Ok(Err(RegisterRefused::Taken));
            }
        }
        let row = BEGIN_SESSION.one(&tx, &[&"agent", &agent_id, &ttl.as_secs_f64()]).await?;
        let session: Uuid = get(&row, "session_id");
        UPSERT_AGENT
            .run(
                &tx,
                &[
                    &agent_id,
                    &registration.agent_type,
                    &registration.hostname,
                    &registration.capabilities.as_slice(),
                    &registration.max_concurrency,
                    &registration.metadata,
                    &session,
                    &&token_digest[..],
                ],
            )
            .await?;
        commit(tx).await?;
        Ok(Ok(Registered {
            session: SessionId(session),
            replaced: ended.iter().map(|r| SessionId(get::<Uuid>(r, "session_id"))).collect(),
        }))
    }

    /// Whose token this is. The first use of a new token ends the one before.
    pub async fn find_agent_by_token(&self, token: &str) -> Result<Option<TokenOwner>, StoreError> {
        let digest = token_digest(token);
        let client = self.client().await?;
        let Some(row) = FIND_AGENT_BY_TOKEN.row(&client, &[&&digest[..]]).await? else {
            return Ok(None);
        };
        let current: bool = get(&row, "current");
        if current && !get::<bool>(&row, "token_used") {
            USE_TOKEN.run(&client, &[&&digest[..]]).await?;
        }
        Ok(Some(TokenOwner { agent: agent_session(&row)?, current }))
    }

    /// The newest session of an agent.
    pub async fn find_agent_session(
        &self,
        agent_id: &str,
    ) -> Result<Option<AgentSession>, StoreError> {
        let client = self.client().await?;
        FIND_AGENT_SESSION.row(&client, &[&agent_id]).await?.as_ref().map(agent_session).transpose()
    }

    /// Leases of this session that were cancelled lately.
    pub async fn list_cancel_notices(&self, session: SessionId) -> Result<Vec<TaskId>, StoreError> {
        let client = self.client().await?;
        let rows = LIST_CANCEL_NOTICES.rows(&client, &[&session.0]).await?;
        Ok(rows.iter().map(|r| TaskId(get::<Uuid>(r, "task_id"))).collect())
    }

    /// A page of agents by id.
    pub async fn list_agents(&self, filter: &AgentFilter) -> Result<Vec<Agent>, StoreError> {
        let client = self.client().await?;
        LIST_AGENTS
            .rows(
                &client,
                &[
                    &filter.agent_id,
                    &filter.status.map(AgentStatus::as_str),
                    &filter.capability,
                    &filter.after,
                    &filter.limit,
                ],
            )
            .await?
            .iter()
            .map(|row| {
                Ok(Agent {
                    agent_id: agent_id(row)?,
                    agent_type: get(row, "agent_type"),
                    hostname: get(row, "hostname"),
                    capabilities: get(row, "capabilities"),
                    max_concurrency: get(row, "max_concurrency"),
                    metadata: get(row, "metadata"),
                    status: word(row, "status")?,
                    leased: get(row, "leased"),
                    last_heartbeat_at: get(row, "last_heartbeat_at"),
                    registered_at: get(row, "registered_at"),
                })
            })
            .collect()
    }
}

/// What is stored of a token.
pub(crate) fn token_digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn agent_id(row: &tokio_postgres::Row) -> Result<AgentId, StoreError> {
    let text: &str = get(row, "agent_id");
    AgentId::parse(text).map_err(|_| StoreError::Unknown { what: format!("agent_id `{text}`") })
}

fn agent_session(row: &tokio_postgres::Row) -> Result<AgentSession, StoreError> {
    Ok(AgentSession {
        agent_id: agent_id(row)?,
        session: SessionId(get::<Uuid>(row, "session_id")),
        live: get(row, "live"),
    })
}
