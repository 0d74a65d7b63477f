//! Membership: this replica's session, its heartbeat, and the hosts that it lists.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Replica, hints, runner};
use crate::{
    config::Host,
    store::{BOOTED_AGAIN, EndLease, HeldLease, HostListing, Outcome, StoreError},
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
    for host in config.hosts.iter().filter(|h| listed.iter().all(|l| l.host_id != h.host_id)) {
        tracing::error!(
            host.id = host.host_id,
            "host is the localhost of another machine, whose replica is alive: give it another host_id here, or wait until that one has ended"
        );
    }
    replica.hosts.set_listed(listed);
    replica.set_session(session);
    replica.is_steady.store(false, Ordering::Relaxed);
    tracing::info!(
        replica.id = config.server.replica_id,
        session.id = %session,
        hosts = config.hosts.len(),
        "the replica has joined the fleet"
    );
    Ok(())
}

/// Lists a host again that was another machine's when this replica joined: the replica there may be gone by now.
pub(super) async fn list_again(replica: &Replica, host: &Host) {
    let listing = HostListing {
        replica_id: &replica.config.server.replica_id,
        session: replica.session(),
        machine: &replica.machine,
        hosts: std::slice::from_ref(host),
    };
    match replica.store.upsert_hosts(listing).await {
        Ok(listed) if listed.is_empty() => {}
        Ok(listed) => {
            tracing::info!(
                host.id = host.host_id,
                "host is this machine's now: the replica that had it is gone"
            );
            replica.hosts.add_listed(listed);
        }
        Err(error) => {
            tracing::warn!(host.id = host.host_id, error = %error_chain(&error), "whose localhost a host is could not be asked");
        }
    }
}

/// A heartbeat that was not stored is sent again this soon. A gap blinds the replica for a whole `replica_ttl`.
const AGAIN: Duration = Duration::from_millis(250);

/// The loop: beats every third of the time after which a silent replica counts as dead.
pub(super) async fn run(replica: &Replica) {
    let beat = replica.config.lease.replica_ttl / 3;
    let mut pause = beat;
    while !replica.shutdown.sleep(pause).await {
        let stored = replica.pulse.beat_replica(replica.session()).await;
        let missed = pause < beat;
        pause = if stored.is_ok() { beat } else { beat.min(AGAIN) };
        match stored {
            Ok(Some(beaten)) => {
                replica.is_steady.store(beaten.is_steady, Ordering::Relaxed);
                replica.store.stand(beaten.standing);
            }
            Ok(None) => ended(replica).await,
            // Once an outage.
            Err(error) if !missed => {
                tracing::warn!(error = %error_chain(&error), "the replica's heartbeat was not stored; it is tried again until it is");
            }
            Err(_) => {}
        }
    }
}

impl Replica {
    /// True when this replica has been there for one `replica_ttl` without a gap. Before that it judges no agent by what it does
    /// not list: the answer to its claim may have been lost with whoever made it, and it asks again as soon as it can.
    pub fn can_judge(&self) -> bool {
        self.is_steady.load(Ordering::Relaxed)
    }
}

/// The session has ended under this replica's feet. Taken for dead, it joins anew; but not when another boot of its id began:
/// two that joined anew in turn would end each other for ever.
async fn ended(replica: &Replica) {
    let id = &replica.config.server.replica_id;
    match replica.pulse.read_session_end(replica.session()).await {
        Ok(reason) if reason.as_deref() == Some(BOOTED_AGAIN) => {
            tracing::error!(
                replica.id = id,
                "another process has started under this replica's id; this one stops. Give each its own server.replica_id"
            );
            replica.shutdown.trigger();
        }
        Ok(_) => {
            tracing::warn!(replica.id = id, "this replica was taken for dead; it joins anew");
            if let Err(error) = join(replica).await {
                tracing::error!(error = %error_chain(&error), "the replica could not join the fleet");
            }
            replica.wake_all();
        }
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "why the replica's session has ended is not known yet");
        }
    }
}

/// The loop beside it, as often: what is in this replica's name is in its hands. On its own, so that a busy pool delays no
/// heartbeat.
pub(super) async fn hold(replica: &Arc<Replica>) {
    let beat = replica.config.lease.replica_ttl / 3;
    let mut idle = HashSet::new();
    while !replica.shutdown.sleep(beat).await {
        idle = pick_up(replica, &idle).await;
    }
}

/// Leases in this replica's name that it does not execute: a claim or a takeover whose commit it did not hear of, or a run
/// that its follower gave up. Those of two beats in a row (`idle` are those of the last one: a claim that has just been
/// committed is not in hand yet) are followed on; where nothing was begun, the claim is undone. Returns those of this beat.
async fn pick_up(replica: &Arc<Replica>, idle: &HashSet<HeldLease>) -> HashSet<HeldLease> {
    let own = match replica.store.list_own_runs(replica.session()).await {
        Ok(own) => own,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "this replica could not look what it holds");
            return HashSet::new();
        }
    };
    let mut now_idle = HashSet::new();
    for run in own.into_iter().filter(|run| !replica.in_hand.contains(&run.held)) {
        let held = run.held;
        now_idle.insert(held);
        if !idle.contains(&held) {
            continue;
        }
        tracing::warn!(task.id = %held.task_id, lease = held.lease.0, "a lease of this replica was in nobody's hands");
        if run.run.is_some() {
            runner::adopt(replica, run);
        } else if let Err(error) = undo(replica, held).await {
            tracing::warn!(task.id = %held.task_id, error = %error_chain(&error), "the claim could not be undone yet");
        }
    }
    now_idle
}

async fn undo(replica: &Replica, held: HeldLease) -> Result<(), StoreError> {
    let end = EndLease {
        held,
        outcome: Outcome::Undone,
        reason: Some("its claim was not heard of".to_owned()),
        wait_secs: None,
        receipt: None,
        actor: replica.actor(),
    };
    replica.store.end_leases(&[end], replica.config.tasks.retry_backoff).await?;
    replica.wake_ready();
    Ok(())
}

/// Ends this boot's session, so that nobody waits for its death.
pub(super) async fn leave(replica: &Replica) {
    let end = replica.pulse.end_session(replica.session(), "stopped");
    match tokio::time::timeout(Duration::from_secs(5), end).await {
        Ok(Ok(())) => {
            // Its sender has stopped. Without this the others find its runs a moment later.
            if let Err(error) = replica.pulse.notify(hints::ORPHANED).await {
                tracing::debug!(error = %error_chain(&error), "the other replicas could not be told of the end");
            }
        }
        Ok(Err(error)) => {
            tracing::warn!(error = %error_chain(&error), "the replica's session was not ended; it will be found silent");
        }
        Err(_) => {
            tracing::warn!("the replica's session was not ended in time; it will be found silent")
        }
    }
}
