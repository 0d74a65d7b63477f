//! The agent's standing with the coordinator: registered, with a token, heartbeating; and every call that depends on it.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    AgentError, Options,
    backoff::Backoff,
    claims::{Claims, Held, Stop},
    parking::Parking,
    work_dir::WorkDir,
};
use crate::{
    cli::client::{Client, ClientError},
    config::Secret,
    model::{Lease, TaskId},
    telemetry::error_chain,
};

/// Everything the loops of one agent share.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) options: Options,
    pub(super) dir: WorkDir,
    pub(super) claims: Claims,
    pub(super) parking: Parking,
    /// Cancelled when the coordinator refuses this agent for good; [`Self::failure`] says why.
    pub(super) refused: CancellationToken,
    /// Names this agent's runs.
    pub(super) fleet_id: Uuid,
    failure: Mutex<Option<AgentError>>,
    /// Set when a claim was left on disk for the next start.
    unsettled: AtomicBool,
    current: RwLock<Current>,
    /// One registration at a time.
    registering: tokio::sync::Mutex<()>,
}

/// The present registration.
#[derive(Debug, Clone)]
struct Current {
    /// Counts registrations, from 0 before the first.
    generation: u64,
    client: Client,
    heartbeat_interval: Duration,
}

#[derive(Deserialize)]
struct Registered {
    registry_token: String,
    heartbeat_interval_secs: u64,
    #[serde(default)]
    resumed: Vec<Resumed>,
}

#[derive(Deserialize)]
struct Resumed {
    task_id: TaskId,
    lease: Lease,
}

/// What a heartbeat answers.
#[derive(Debug, Deserialize)]
struct Beat {
    #[serde(default)]
    cancel: Vec<TaskId>,
    #[serde(default)]
    lost: Vec<TaskId>,
}

impl Session {
    /// Not yet registered.
    pub(super) fn new(options: Options, dir: WorkDir, fleet_id: Uuid) -> Self {
        let current = Current {
            generation: 0,
            client: options.client.clone(),
            heartbeat_interval: Duration::from_secs(60),
        };
        Self {
            options,
            dir,
            claims: Claims::default(),
            parking: Parking::default(),
            refused: CancellationToken::new(),
            fleet_id,
            failure: Mutex::default(),
            unsettled: AtomicBool::new(false),
            current: RwLock::new(current),
            registering: tokio::sync::Mutex::default(),
        }
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The error that the coordinator refused this agent with, if it did.
    pub(super) fn failure(&self) -> Result<(), AgentError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    /// A claim stays on disk: the next start goes on with it.
    pub(super) fn leave_unsettled(&self) {
        self.unsettled.store(true, Ordering::Release);
    }

    /// True when nothing is left for the next start.
    pub(super) fn all_settled(&self) -> bool {
        self.claims.all().is_empty() && !self.unsettled.load(Ordering::Acquire)
    }

    /// Registers, unless somebody else has done it since `generation`. Keeps trying while the coordinator is away.
    pub(super) async fn register(&self, generation: u64) -> Result<(), Refused> {
        let _one = self.registering.lock().await;
        if self.current().generation != generation {
            return Ok(());
        }
        let mut backoff = Backoff::default();
        loop {
            let error = match self.register_once(generation).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !matches!(&error, AgentError::Client(e) if e.is_passing()) {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.refused.cancel();
                return Err(Refused);
            }
            tracing::warn!(error = error_chain(&error), "cannot register; will try again");
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn register_once(&self, generation: u64) -> Result<(), AgentError> {
        let held = self.claims.all();
        let body = self.options.registration(held.iter().map(|h| h.task_id()).collect());
        let post = |client: &Client| {
            let request = client.request(Method::POST, "/api/v1/agents/register").json(&body);
            let client = client.clone();
            async move { client.send::<Registered>(request).await }
        };
        let answer = match self.dir.token()? {
            Some(own) => match post(&self.options.client.with_token(Some(own))?).await {
                // The id was freed meanwhile, or the folder is from another coordinator.
                Err(ClientError::Refused { status: 401 | 403, .. }) => {
                    post(&self.options.client).await
                }
                other => other,
            },
            None => post(&self.options.client).await,
        };
        let answer = answer?.ok_or(AgentError::NoAnswer)?;
        let token = Secret::new(answer.registry_token);
        // Before it is first used, because that ends the old one.
        self.dir.save_token(&token)?;
        for held in &held {
            match answer.resumed.iter().find(|r| r.task_id == held.task_id()) {
                Some(resumed) => held.set_lease(resumed.lease),
                None => held.stop(Stop::Lost),
            }
        }
        let client = self.options.client.with_token(Some(token))?;
        let heartbeat_interval = Duration::from_secs(answer.heartbeat_interval_secs.max(1));
        tracing::info!(
            agent_id = %self.options.agent_id, resumed = answer.resumed.len(),
            heartbeat_secs = heartbeat_interval.as_secs(), "registered"
        );
        *self.current.write().unwrap_or_else(PoisonError::into_inner) =
            Current { generation: generation + 1, client, heartbeat_interval };
        Ok(())
    }

    /// Makes a call, and once more after registering anew when the session has ended. `None` for 204.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Option<T>, CallError> {
        let current = self.current();
        match current.client.send(request(&current.client)).await {
            Err(error) if is_session_ended(&error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "this session has ended; registering anew"
                );
                self.register(current.generation).await?;
            }
            other => return Ok(other?),
        }
        let client = self.current().client;
        Ok(client.send(request(&client)).await?)
    }

    /// The same, again and again while the coordinator is away, with `limit` as the end of all trying.
    pub(super) async fn insist<T: DeserializeOwned>(
        &self,
        limit: impl Future<Output = ()>,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Option<T>, CallError> {
        let tries = async {
            let mut backoff = Backoff::default();
            loop {
                match self.call(&request).await {
                    Err(CallError::Client(error)) if error.is_passing() => {
                        tracing::warn!(error = error_chain(&error), "will try again");
                        tokio::time::sleep(backoff.next()).await;
                    }
                    other => return other,
                }
            }
        };
        tokio::select! {
            result = tries => result,
            () = limit => Err(CallError::GivenUp),
        }
    }

    /// Heartbeats at the interval told, sooner while the coordinator is away. Ends only with the agent.
    pub(super) async fn heartbeats(&self) -> Refused {
        let mut backoff = Backoff::default();
        loop {
            let interval = self.current().heartbeat_interval;
            let pause = match self.beat().await {
                Ok(()) => {
                    backoff = Backoff::default();
                    interval
                }
                Err(CallError::Refused(refused)) => return refused,
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "the heartbeat failed; the runs go on"
                    );
                    backoff.next().min(interval)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn beat(&self) -> Result<(), CallError> {
        let held = self.claims.all();
        let mut running: Vec<TaskId> = held.iter().map(|h| h.task_id()).collect();
        running.dedup();
        let body = json!({"agent_id": self.options.agent_id, "running": running});
        let beat: Option<Beat> = self.call(|c| agent_post(c, "heartbeat", &body)).await?;
        let Some(beat) = beat else { return Ok(()) };
        // Only what was listed: a claim made since then is another one.
        for held in held {
            let named = |list: &[TaskId]| list.contains(&held.task_id());
            if named(&beat.cancel) || named(&beat.lost) {
                self.lose(&held, "the coordinator called it off");
            }
        }
        Ok(())
    }

    /// Ends the run of a task that is not this agent's any more.
    pub(super) fn lose(&self, held: &Arc<Held>, why: &str) {
        if held.stop_reason() != Some(Stop::Lost) {
            tracing::info!(task.id = %held.task_id(), lease = %held.claim.run_lease, why, "the task is lost");
            held.stop(Stop::Lost);
        }
    }

    /// Gives the tasks and the session back.
    pub(super) async fn deregister(&self) -> Result<(), CallError> {
        let body = json!({"agent_id": self.options.agent_id});
        let current = self.current();
        // Not `call`: an ended session needs no end.
        let _: Option<Value> =
            current.client.send(agent_post(&current.client, "deregister", &body)).await?;
        Ok(())
    }
}

/// The coordinator refused this agent for good.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the coordinator refused this agent")]
pub(super) struct Refused;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("gave up")]
    GivenUp,
}

impl CallError {
    /// The status of an answer that will be the same next time.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Client(error) => error.status(),
            Self::Refused(_) | Self::GivenUp => None,
        }
    }
}

/// `POST /api/v1/agents/{act}`
fn agent_post(client: &Client, act: &str, body: &Value) -> RequestBuilder {
    client.request(Method::POST, &format!("/api/v1/agents/{act}")).json(body)
}

/// The token or the agent is not known any more, or another registration took this one's place. A task that is not known
/// looks the same; a registration too many does no harm.
fn is_session_ended(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: 401 | 404, .. })
        || error.code() == Some("session_ended")
}
