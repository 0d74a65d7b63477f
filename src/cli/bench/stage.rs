//! What the scenarios stand on: coordinators and a database of the bench's own, or coordinators that somebody else runs.

use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rand::RngExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    database::Database,
    http::{Address, Connection},
    memory::Memory,
    progress::Progress,
    replica::{Replica, Settings},
};
use crate::{
    cli::{
        client::{Client, segment},
        dev::postgres::Cluster,
        list,
    },
    config::Secret,
};

/// Tasks that are cancelled at once.
const CANCELS: usize = 16;

/// How the run was asked for.
#[derive(Debug)]
pub(super) struct Stage {
    /// Only prove that everything runs.
    pub(super) quick: bool,
    /// How often each figure is measured.
    pub(super) rounds: usize,
    pub(super) progress: Progress,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Own(Box<Own>),
    Foreign(Foreign),
}

#[derive(Debug)]
struct Own {
    cluster: Cluster,
    /// For the logs of the replicas.
    dir: TempDir,
    memory: Memory,
    admin_token: String,
    webhook_secret: String,
}

#[derive(Debug)]
struct Foreign {
    client: Client,
    addresses: Vec<Address>,
    token: Option<String>,
    /// What has to be cleared up: capabilities of tasks, and agents.
    made: Mutex<(Vec<String>, Vec<String>)>,
}

/// The coordinators that one scenario works with, on a database of its own when they are the bench's own.
#[derive(Debug)]
pub(super) struct Fleet<'a> {
    stage: &'a Stage,
    /// Absent when the coordinators are somebody else's.
    pub(super) database: Option<Database<'a>>,
    pub(super) replicas: Vec<Replica>,
    /// Required by all tasks of this scenario, and offered by its agents and by nobody else.
    pub(super) capability: String,
    agents: Mutex<usize>,
    /// How many coordinators are to be loaded.
    wanted: usize,
}

impl Stage {
    /// With a PostgreSQL and coordinators of its own.
    pub(super) async fn own(quick: bool, rounds: usize) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("agent-fleet-bench-").tempdir()?;
        let own = Own {
            cluster: Cluster::start_measured().await?,
            memory: Memory::new(dir.path())?,
            dir,
            admin_token: random_hex(),
            webhook_secret: random_hex(),
        };
        Ok(Self { quick, rounds, progress: Progress::new(), place: Place::Own(Box::new(own)) })
    }

    /// With coordinators that somebody else runs. A wrong address or token is found out here.
    pub(super) async fn foreign(
        quick: bool,
        rounds: usize,
        urls: &[String],
        addresses: Vec<Address>,
        token: Option<String>,
    ) -> anyhow::Result<Self> {
        let secret = token.as_ref().map(Secret::new);
        let mut clients = Vec::new();
        for url in urls {
            let client = Client::new(url, secret.clone())?;
            list::fetch(&client, "/api/v1/tasks", Vec::new(), 1).await?;
            clients.push(client);
        }
        let client = clients.remove(0);
        let place = Place::Foreign(Foreign { client, addresses, token, made: Mutex::default() });
        Ok(Self { quick, rounds, progress: Progress::new(), place })
    }

    /// Coordinators for the scenario `name`; one to begin with.
    pub(super) async fn fleet(&self, name: &str) -> anyhow::Result<Fleet<'_>> {
        let run = &random_hex()[..8];
        let capability = format!("agent:bench-{name}-{run}");
        let database = match &self.place {
            Place::Own(own) => {
                if !self.quick {
                    self.progress.begin(&format!("{name}: memory is filled"));
                    own.memory.fill().await?;
                }
                Some(Database::create(&own.cluster, format!("{name}_{run}")).await?)
            }
            Place::Foreign(foreign) => {
                foreign.made().0.push(capability.clone());
                None
            }
        };
        let mut fleet = Fleet {
            stage: self,
            database,
            replicas: Vec::new(),
            capability,
            agents: Mutex::new(0),
            wanted: 1,
        };
        if let Place::Own(_) = self.place {
            fleet.scale(1).await?;
        }
        Ok(fleet)
    }

    /// Clears up: what it made at somebody else's, all of its own.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.progress.clear();
        match self.place {
            Place::Own(own) => Ok(own.cluster.stop().await?),
            Place::Foreign(foreign) => foreign.clear_up().await,
        }
    }

    /// The program that runs PostgreSQL, for who wants its version; `None` at somebody else's.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        match &self.place {
            Place::Own(own) => Some(&own.cluster),
            Place::Foreign(_) => None,
        }
    }
}

impl Foreign {
    fn made(&self) -> std::sync::MutexGuard<'_, (Vec<String>, Vec<String>)> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels the tasks that are still open and takes the agents out. Finished tasks stay, as every finished task does.
    async fn clear_up(&self) -> anyhow::Result<()> {
        let (capabilities, agents) = std::mem::take(&mut *self.made());
        for agent_id in agents {
            let body = json!({ "agent_id": agent_id });
            match self.client.post::<_, Value>("/api/v1/agents/deregister", &body).await {
                // Its scenario has taken it out already, or never came to register it.
                Err(error) if matches!(error.code(), Some("session_ended" | "not_found")) => {}
                answer => drop(answer?),
            }
        }
        for capability in capabilities {
            // The way back to the queue: what an agent that has gone gives back meanwhile is found where it has come to.
            for status in ["running", "assigned", "scheduled", "created"] {
                let query = vec![("capability", capability.clone()), ("status", status.to_owned())];
                let open = list::fetch(&self.client, "/api/v1/tasks", query, usize::MAX).await?;
                let cancelling = list::items(&open).iter().map(|task| self.cancel(task));
                stream::iter(cancelling).buffer_unordered(CANCELS).try_collect::<()>().await?;
            }
        }
        Ok(())
    }

    async fn cancel(&self, task: &Value) -> anyhow::Result<()> {
        let id = segment(task["task_id"].as_str().unwrap_or_default());
        let body = json!({ "reason": "the bench has ended" });
        let _: Value = self.client.post(&format!("/api/v1/tasks/{id}/cancel"), &body).await?;
        Ok(())
    }
}

impl Fleet<'_> {
    /// How many coordinators can be had.
    pub(super) fn most(&self) -> usize {
        match &self.stage.place {
            Place::Own(_) => usize::MAX,
            Place::Foreign(foreign) => foreign.addresses.len(),
        }
    }

    /// Starts or stops coordinators until there are so many. Of somebody else's so many are loaded.
    pub(super) async fn scale(&mut self, wanted: usize) -> anyhow::Result<()> {
        self.wanted = wanted;
        let (Place::Own(own), Some(database)) = (&self.stage.place, &self.database) else {
            return Ok(());
        };
        while self.replicas.len() > wanted {
            if let Some(last) = self.replicas.pop() {
                last.stop().await?;
            }
        }
        while self.replicas.len() < wanted {
            let settings = Settings {
                database_url: database.url(),
                admin_token: &own.admin_token,
                webhook_secret: &own.webhook_secret,
                dir: own.dir.path(),
            };
            self.replicas.push(Replica::start(&settings, self.replicas.len()).await?);
        }
        Ok(())
    }

    /// The address of the coordinator for the agent or caller `number`: they take turns.
    pub(super) fn address(&self, number: usize) -> &Address {
        match &self.stage.place {
            Place::Own(_) => &self.replicas[number % self.replicas.len()].address,
            Place::Foreign(foreign) => {
                &foreign.addresses[number % foreign.addresses.len().min(self.wanted.max(1))]
            }
        }
    }

    /// The token of an admin; `None` in open mode.
    pub(super) fn token(&self) -> Option<&str> {
        match &self.stage.place {
            Place::Own(own) => Some(&own.admin_token),
            Place::Foreign(foreign) => foreign.token.as_deref(),
        }
    }

    /// The bench's own database, for who cannot do without: such scenarios are refused beforehand at somebody else's.
    pub(super) fn own_database(&self) -> anyhow::Result<&Database<'_>> {
        self.database.as_ref().context("there is no database of the bench's own")
    }

    /// The secret of the webhook; only of coordinators of the bench's own.
    pub(super) fn webhook_secret(&self) -> Option<Secret> {
        match &self.stage.place {
            Place::Own(own) => Some(Secret::new(&own.webhook_secret)),
            Place::Foreign(_) => None,
        }
    }

    /// A connection of an admin to the coordinator for `number`.
    pub(super) async fn admin(&self, number: usize) -> anyhow::Result<Connection> {
        Connection::open(self.address(number), self.token()).await
    }

    /// A new name for an agent, noted so that it is taken out in the end.
    pub(super) fn name_agent(&self) -> String {
        let mut count = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        let name = format!("{}-{count}", self.capability.replace(':', "-"));
        if let Place::Foreign(foreign) = &self.stage.place {
            foreign.made().1.push(name.clone());
        }
        name
    }

    pub(super) fn stage(&self) -> &Stage {
        self.stage
    }

    /// Ends its coordinators, and removes their database.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.scale(0).await?;
        match self.database.take() {
            Some(database) => database.remove().await,
            None => Ok(()),
        }
    }
}

fn random_hex() -> String {
    hex::encode(rand::rng().random::<[u8; 16]>())
}
