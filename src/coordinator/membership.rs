//! Membership: this replica's session, its heartbeat, and the hosts that it lists.

use std::time::Duration;

use super::Replica;
use crate::{
    store::{HostListing, StoreError},
    telemetry::error_chain,
};

/// Begins this boot's session and lists its hosts. Also done again when the session was ended by others.
pub(super) async fn join(replica: &Replica) -> Result<(), StoreError> {
    let config = &replica.config;
    let session = replica
        .pulse
        .begin_replica(
            &config.server.replica_id,
            &replica.hostname,
            &replica.machine,
            config.lease.replica_ttl,
        )
        .await?;
    let listed = replica
        .pulse
        .upsert_hosts(HostListing {
            replica_id: &config.server.replica_id,
            session,
            machine: &replica.machine,
            hosts: &config.hosts,
        })
        .await?;
    replica.hosts.set_listed(listed);
    replica.set_session(session);
    tracing::info!(
        replica.id = config.server.replica_id,
        session.id = %session,
        hosts = config.hosts.len(),
        "the replica has joined the fleet"
    );
    Ok(())
}

/// The loop: beats every third of the time after which a silent replica counts as dead.
pub(super) async fn run(replica: &Replica) {
    let beat = replica.config.lease.replica_ttl / 3;
    while !replica.shutdown.sleep(beat).await {
        match replica.pulse.beat_replica(replica.session()).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("this replica was taken for dead; it joins anew");
                if let Err(error) = join(replica).await {
                    tracing::error!(error = %error_chain(&error), "the replica could not join the fleet");
                }
                replica.wake_all();
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the replica's heartbeat was not stored");
            }
        }
    }
}

/// Ends this boot's session, so that nobody waits for its death.
pub(super) async fn leave(replica: &Replica) {
    let end = replica.pulse.end_session(replica.session(), "stopped");
    match tokio::time::timeout(Duration::from_secs(5), end).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %error_chain(&error), "the replica's session was not ended; it will be found silent");
        }
        Err(_) => {
            tracing::warn!("the replica's session was not ended in time; it will be found silent")
        }
    }
}
