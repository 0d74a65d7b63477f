//! Agents: registration, tokens, drain, removal.

use std::{collections::HashMap, time::Duration};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{begin, commit},
    error::retry,
    journal::Journal,
    rows::{get, moment, moment_if_any, word},
    statement::{
        BEGIN_SESSION, CHECK_CALLERS, DELETE_AGENT, END_SESSIONS_OF, FIND_AGENT_BY_TOKEN,
        FIND_AGENT_SESSION, LIST_AGENTS, LOCK_AGENT, LOCK_AGENT_ID, LOCK_AGENT_SESSION,
        RESUME_LEASES, SET_AGENT_DRAINED, UPSERT_AGENT, USE_TOKEN,
    },
};
use crate::model::{
    Actor, Agent, AgentId, AgentStatus, CapabilitySet, EventType, Lease, SessionId, TaskId,
};

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
    /// The sessions that this one replaces; what they still hold goes back to the queue.
    pub replaced: Vec<SessionId>,
    /// Leases that have passed to the new session.
    pub resumed: Vec<(TaskId, Lease)>,
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

/// By what a caller is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CallerKey {
    /// The digest of an agent's token.
    Token([u8; 32]),
    /// The name of the agent that somebody acts for who may act for any.
    Agent(String),
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
    /// Registers an agent: a new session and a new token, given as its digest. What it still works on (`resume`) passes to
    /// the new session in the same transaction; the caller ends the other leases of the replaced sessions.
    pub async fn register_agent(
        &self,
        registration: &Registration,
        credential: Credential,
        token_digest: &[u8; 32],
        ttl: Duration,
        resume: &[TaskId],
    ) -> Result<Result<Registered, RegisterRefused>, StoreError> {
        // Kept over all tries: one whose commit went through unheard has replaced a session that the next does not see.
        let mut replaced = Vec::new();
        retry!(
            self.register_once(registration, credential, token_digest, ttl, resume, &mut replaced)
                .await
        )
    }

    async fn register_once(
        &self,
        registration: &Registration,
        credential: Credential,
        token_digest: &[u8; 32],
        ttl: Duration,
        resume: &[TaskId],
        replaced: &mut Vec<SessionId>,
    ) -> Result<Result<Registered, RegisterRefused>, StoreError> {
        let agent_id = registration.agent_id.as_str();
        if self.is_host_id(agent_id).await? {
            return Ok(Err(RegisterRefused::Host));
        }
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        LOCK_AGENT_ID.run(&tx, &[&agent_id]).await?;
        let ended = END_SESSIONS_OF.rows(&tx, &[&"agent", &agent_id, &"registered anew"]).await?;
        replaced.extend(ended.iter().map(|r| SessionId(get::<Uuid>(r, "session_id"))));
        if let Some(known) = LOCK_AGENT.row(&tx, &[&agent_id]).await? {
            // Its newest session, even if it has just been found silent: what nobody has requeued yet can be resumed.
            replaced.push(SessionId(get::<Uuid>(&known, "session_id")));
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
        replaced.sort_unstable();
        replaced.dedup();
        let mut resumed = Vec::new();
        let mut journal = Journal::default();
        if !resume.is_empty() {
            let tasks: Vec<Uuid> = resume.iter().map(|t| t.0).collect();
            let before: Vec<Uuid> = replaced.iter().map(|s| s.0).collect();
            let actor = Actor::Agent(agent_id.to_owned()).to_string();
            let rows = RESUME_LEASES.rows(&tx, &[&tasks, &before, &session, &actor]).await?;
            journal.note_rows(&rows, EventType::Resumed, None, &actor);
            resumed.extend(
                rows.iter().map(|r| (TaskId(get::<Uuid>(r, "task_id")), Lease(get(r, "lease")))),
            );
        }
        commit(tx).await?;
        journal.write();
        Ok(Ok(Registered { session: SessionId(session), replaced: replaced.clone(), resumed }))
    }

    /// Forgets an agent: its id is free, its tokens are worth nothing, its session has ended. Returns the sessions whose
    /// leases the caller gives back; `None` when there is no such agent.
    pub async fn delete_agent(&self, agent_id: &str) -> Result<Option<Vec<SessionId>>, StoreError> {
        // Kept over all tries: one whose commit went through unheard leaves nothing for the next to find.
        let mut sessions = Vec::new();
        retry!(self.delete_agent_once(agent_id, &mut sessions).await)?;
        sessions.sort_unstable();
        sessions.dedup();
        Ok((!sessions.is_empty()).then_some(sessions))
    }

    async fn delete_agent_once(
        &self,
        agent_id: &str,
        sessions: &mut Vec<SessionId>,
    ) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        LOCK_AGENT_ID.run(&tx, &[&agent_id]).await?;
        let ended = END_SESSIONS_OF.rows(&tx, &[&"agent", &agent_id, &"deleted"]).await?;
        let Some(row) = DELETE_AGENT.row(&tx, &[&agent_id]).await? else { return Ok(()) };
        sessions.extend(ended.iter().map(|r| SessionId(get::<Uuid>(r, "session_id"))));
        sessions.push(SessionId(get::<Uuid>(&row, "session_id")));
        commit(tx).await?;
        Ok(())
    }

    /// Lets an agent take nothing new, or take work again. Claims that are under way have ended when this returns. False
    /// when there is no such agent.
    pub async fn set_agent_drained(
        &self,
        agent_id: &str,
        drained: bool,
    ) -> Result<bool, StoreError> {
        retry!(
            async {
                let mut client = self.client().await?;
                let tx = begin(&mut client).await?;
                LOCK_AGENT_SESSION.row(&tx, &[&agent_id]).await?;
                let known = SET_AGENT_DRAINED.row(&tx, &[&agent_id, &drained]).await?.is_some();
                commit(tx).await?;
                Ok(known)
            }
            .await
        )
    }

    /// Whose token this is. The first use of a new token ends the one before.
    pub async fn find_agent_by_token(
        &self,
        digest: &[u8; 32],
    ) -> Result<Option<TokenOwner>, StoreError> {
        let Some(row) = self.read_row(&FIND_AGENT_BY_TOKEN, &[&&digest[..]]).await? else {
            return Ok(None);
        };
        let current: bool = get(&row, "current");
        if current && !get::<bool>(&row, "token_used") {
            USE_TOKEN.run(&self.client().await?, &[&&digest[..]]).await?;
        }
        Ok(Some(TokenOwner { agent: agent_session(&row)?, current }))
    }

    /// The newest session of an agent.
    pub async fn find_agent_session(
        &self,
        agent_id: &str,
    ) -> Result<Option<AgentSession>, StoreError> {
        self.read_row(&FIND_AGENT_SESSION, &[&agent_id])
            .await?
            .as_ref()
            .map(agent_session)
            .transpose()
    }

    /// Who these callers are now; those that are nobody are left out.
    pub async fn check_callers(
        &self,
        keys: &[CallerKey],
    ) -> Result<HashMap<CallerKey, TokenOwner>, StoreError> {
        let mut digests: Vec<&[u8]> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for key in keys {
            match key {
                CallerKey::Token(digest) => digests.push(digest),
                CallerKey::Agent(agent_id) => names.push(agent_id),
            }
        }
        let rows = self.read(&CHECK_CALLERS, &[&digests, &names]).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let key = match get::<Option<&[u8]>>(row, "digest").map(TryInto::try_into) {
                Some(Ok(digest)) => CallerKey::Token(digest),
                _ => CallerKey::Agent(get::<Option<String>>(row, "named").unwrap_or_default()),
            };
            let owner = TokenOwner { agent: agent_session(row)?, current: get(row, "current") };
            found.insert(key, owner);
        }
        Ok(found)
    }

    /// A page of agents by id.
    pub async fn list_agents(&self, filter: &AgentFilter) -> Result<Vec<Agent>, StoreError> {
        self.read(
            &LIST_AGENTS,
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
                last_heartbeat_at: moment_if_any(row, "last_heartbeat_at"),
                registered_at: moment(row, "registered_at"),
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
