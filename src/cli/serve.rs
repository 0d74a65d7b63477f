//! `agent-fleet serve`: one replica, until it is told to stop.

use std::time::Duration;

use anyhow::Context as _;

use super::{Failure, Outcome};
use crate::{
    api,
    config::Config,
    coordinator::{Replica, make_executor},
    shutdown::{self, Shutdown, Signal},
    telemetry, traces,
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
    /// When told to stop, wait so long for the runs on hosts that this replica follows (such as 30m). What runs on then is
    /// left to other replicas, as all of it is without this.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    drain_wait: Duration,
}

/// Runs `serve`.
pub(super) async fn command(args: Args, config: Config) -> Outcome {
    config.check_serve().map_err(|error| Failure::Usage(error.into()))?;
    telemetry::init(&config.log).map_err(|error| Failure::Usage(error.into()))?;
    let shutdown = Shutdown::new();
    tokio::spawn(stop_on_signal(shutdown.clone(), config.server.drain_grace, args.drain_wait));
    run(config, args.migrate, shutdown).await
}

/// At the first signal nothing new is taken on, and `/readyz` says so while the listener still serves: for `grace`, so that a
/// balancer sees it before connections are refused, and for `wait` at most while runs on hosts end. Then all stops. A
/// second signal ends the process.
async fn stop_on_signal(shutdown: Shutdown, grace: Duration, wait: Duration) {
    let signal = match shutdown::signal().await {
        Ok(signal) => signal,
        Err(error) => {
            tracing::error!(%error, "signals cannot be received");
            return;
        }
    };
    tokio::spawn(async {
        if shutdown::signal().await.is_ok() {
            std::process::exit(1);
        }
    });
    tracing::info!(%signal, runs = shutdown.runs(), "draining; a second signal stops at once");
    shutdown.drain();
    // A person at a terminal has no balancer.
    if signal == Signal::Term {
        tokio::time::sleep(grace).await;
    }
    if !wait.is_zero() && !shutdown.wait_for_runs(wait).await {
        tracing::warn!(runs = shutdown.runs(), "runs on hosts go on; other replicas follow them");
    }
    shutdown.trigger();
}

/// Serves until `shutdown` is triggered: binds, joins the fleet, and at the end leaves it.
pub async fn run(config: Config, migrate: bool, shutdown: Shutdown) -> Outcome {
    let listen = config.server.listen;
    // Bound before anything else, so that a port that is taken changes nothing.
    let listener = api::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} (server.listen)"))?;
    traces::init(&config.server.replica_id).map_err(|error| Failure::Usage(error.into()))?;
    let replica = Replica::start(config, migrate, &make_executor, shutdown).await?;
    tracing::info!(
        replica.id = replica.config.server.replica_id,
        listen = %listen,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    api::serve(std::sync::Arc::clone(&replica), listener, REQUEST_LIMIT).await;
    replica.stop(LOOP_LIMIT).await;
    traces::finish().await;
    tracing::info!(replica.id = replica.config.server.replica_id, "stopped");
    Ok(())
}
