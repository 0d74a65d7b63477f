//! `agent-fleet dev`: everything on one machine, with nothing to set up.
//!
//! A PostgreSQL of its own, the coordinator in open mode on loopback, this machine as a host, a pull agent, and two demo
//! issues whose life it tells. Then it goes on serving. The data is kept between runs.

mod demo;
mod folder;
pub(super) mod forge;
pub mod postgres;
mod story;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use rand::RngExt as _;
use serde_json::Value;

use self::postgres::Cluster;
use super::{Failure, Outcome, agent, client::Client, terminal::print};
use crate::{
    config::{AuthMode, Cli, Config, Secret},
    shutdown::Shutdown,
};

/// How long the coordinator may take to be ready.
const READY_WAIT: Duration = Duration::from_secs(60);
const DATABASE: &str = "agent_fleet";
/// The same at each start, so that a start takes over at once from one that was killed.
const REPLICA_ID: &str = "dev";

/// Runs `dev` until it is interrupted. `serve` is the coordinator: it migrates the database and serves until the
/// [`Shutdown`] is triggered.
pub async fn run<S>(mut config: Config, serve: S) -> Outcome
where
    S: AsyncFnOnce(Config, Shutdown) -> Outcome,
{
    if config.log.level == "info" {
        // The story is what is to be read. warp calls it an error when the agent hangs up at the end.
        config.log.level = "warn".to_owned();
    }
    crate::telemetry::init(&config.log)?;
    let dir = folder::choose(|name| std::env::var_os(name), postgres::is_root().await)
        .map_err(Failure::Usage)?;
    folder::make(&dir)?;
    check_free(config.server.listen)?;
    print(&format!("Data is kept in {}.\nStarting PostgreSQL ...\n", dir.display()))?;
    let cluster = Cluster::start(&dir.join("postgres")).await?;
    // In every case the server is stopped before this ends.
    let outcome = with_database(config, &dir, &cluster, serve).await;
    let stopped = cluster.stop().await;
    outcome?;
    Ok(stopped?)
}

async fn with_database<S>(config: Config, dir: &Path, cluster: &Cluster, serve: S) -> Outcome
where
    S: AsyncFnOnce(Config, Shutdown) -> Outcome,
{
    cluster.create_database(DATABASE).await?;
    let config = configure(config, dir, cluster)?;
    config.check_serve().map_err(|error| Failure::Usage(error.into()))?;
    let stage = Stage {
        url: format!("http://{}", config.server.listen),
        secret: config.forgejo.webhook_secret.first().cloned().context("no webhook secret")?,
        cli: config.cli.get(demo::CLI).cloned().context("no demo CLI")?,
        database: cluster.url(DATABASE),
        dir: dir.to_owned(),
    };
    print("Starting the coordinator ...\n")?;
    let shutdown = Shutdown::new();
    let mut served = Box::pin(serve(config, shutdown.clone()));
    let played = tokio::select! {
        // Before its time, so it failed.
        outcome = &mut served => return outcome,
        played = stage.play() => played,
    };
    shutdown.trigger();
    served.await?;
    Ok(played?)
}

/// What the demo plays on.
struct Stage {
    url: String,
    secret: Secret,
    cli: Cli,
    database: String,
    dir: PathBuf,
}

impl Stage {
    /// Runs the agent and the demo, then waits for SIGTERM or Ctrl-C. Either ends it at any time.
    async fn play(&self) -> anyhow::Result<()> {
        let client = Client::new(&self.url, None)?;
        let mut interrupted = Box::pin(crate::shutdown::signal());
        tokio::select! {
            _ = &mut interrupted => return Ok(()),
            ready = wait_until_ready(&client) => ready?,
        }
        // The agent leaves while the coordinator still answers.
        let shutdown = Shutdown::new();
        let options = demo::agent(client.clone(), self.cli.clone(), &self.dir).await?;
        let mut agent = Box::pin(agent::run(options, &shutdown));
        let told = async {
            demo::wait_until_ready(&client).await?;
            demo::play(&client, &self.secret).await?;
            print(&self.what_next())?;
            std::future::pending::<anyhow::Result<()>>().await
        };
        let told = tokio::select! {
            ended = &mut agent => return Ok(ended?),
            told = told => told,
            signal = &mut interrupted => signal.map(|_| ()).map_err(Into::into),
        };
        print("\nStopping ...\n")?;
        shutdown.trigger();
        agent.await?;
        told
    }

    /// What the reader may do now.
    fn what_next(&self) -> String {
        let program = std::env::args().next().unwrap_or_else(|| "agent-fleet".to_owned());
        let Self { url, database, dir, .. } = self;
        let dir = dir.display();
        format!(
            "
Serving at {url} until Ctrl-C. In another terminal, try:

  {program} task list
  {program} task submit --title 'Say hello' --label agent:demo --wait
  {program} task show KEY     (and: task logs KEY, task retry KEY, task cancel KEY)
  {program} agents list
  {program} hosts list
  curl {url}/readyz
  psql \"{database}\"

A forge's webhook goes to {url}/api/v1/webhooks/forgejo; AGENT_FLEET_WEBHOOK_SECRET
sets its secret. To begin anew, remove {dir}.
"
        )
    }
}

/// Fails when somebody listens there: the demo must not play on another coordinator.
fn check_free(listen: SocketAddr) -> anyhow::Result<()> {
    std::net::TcpListener::bind(listen).map(drop).with_context(|| {
        format!("cannot listen on {listen}; another address may be set by AGENT_FLEET_LISTEN")
    })
}

/// Waits until the coordinator says that it is ready.
async fn wait_until_ready(client: &Client) -> anyhow::Result<()> {
    let asking = async {
        while client.get::<Value>("/readyz", &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = tokio::time::timeout(READY_WAIT, asking).await;
    waited.with_context(|| format!("the coordinator is not ready after {} s", READY_WAIT.as_secs()))
}

/// What `dev` needs, whatever the configuration says: its own database, nothing that reaches beyond this machine.
fn configure(mut config: Config, dir: &Path, cluster: &Cluster) -> anyhow::Result<Config> {
    config.server.replica_id = REPLICA_ID.to_owned();
    config.database.url = Some(Secret::new(cluster.url(DATABASE)));
    config.database.listen_url = None;
    config.auth.mode = AuthMode::Open;
    config.hosts = vec![demo::host(dir)?];
    config.cli.insert(demo::CLI.to_owned(), demo::cli(dir)?);
    config.forgejo.url = None;
    config.forgejo.token = None;
    config.forgejo.repos = Vec::new();
    if config.forgejo.webhook_secret.is_empty() {
        let secret: [u8; 32] = rand::rng().random();
        config.forgejo.webhook_secret = vec![Secret::new(hex::encode(secret))];
    }
    Ok(config)
}
