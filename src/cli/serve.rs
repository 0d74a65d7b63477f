//! `agent-fleet serve`: one replica, until it is told to stop.

use std::time::Duration;

use anyhow::Context as _;

use super::{Failure, Outcome};
use crate::{
    api,
    config::Config,
    coordinator::{Replica, make_executor},
    shutdown::{self, Shutdown},
    telemetry,
};

/// Requests that are under way when it stops have so long to end.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Loops and claims that are being handed out have so long to end.
const LOOP_LIMIT: Duration = Duration::from_secs(15);

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Apply missing migrations first. Safe when several replicas do it at once.
    #[arg(long)]
    migrate: bool,
    /// Address and port, instead of `server.listen`.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// Instead of `server.replica_id`.
    #[arg(long, value_name = "ID")]
    pub(super) replica_id: Option<String>,
}

/// Runs `serve`.
pub(super) async fn command(args: Args, config: Config) -> Outcome {
    config.check_serve().map_err(|error| Failure::Usage(error.into()))?;
    telemetry::init(&config.log).map_err(|error| Failure::Usage(error.into()))?;
    let shutdown = Shutdown::new();
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        match shutdown::signal().await {
            Ok(signal) => tracing::info!(signal, "stopping; a second signal stops at once"),
            Err(error) => tracing::error!(%error, "signals cannot be received"),
        }
        on_signal.trigger();
        if shutdown::signal().await.is_ok() {
            std::process::exit(1);
        }
    });
    run(config, args.migrate, shutdown).await
}

/// Serves until `shutdown` is triggered: binds, joins the fleet, and at the end leaves it.
pub async fn run(config: Config, migrate: bool, shutdown: Shutdown) -> Outcome {
    let listen = config.server.listen;
    // Bound before anything else, so that a port that is taken changes nothing.
    let listener = api::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} (server.listen)"))?;
    let replica = Replica::start(config, migrate, &make_executor, shutdown).await?;
    tracing::info!(
        replica.id = replica.config.server.replica_id,
        listen = %listen,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    api::serve(std::sync::Arc::clone(&replica), listener, REQUEST_LIMIT).await;
    replica.stop(LOOP_LIMIT).await;
    tracing::info!(replica.id = replica.config.server.replica_id, "stopped");
    Ok(())
}
