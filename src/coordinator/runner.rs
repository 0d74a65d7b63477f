//! Runs on hosts: one task is started, followed and settled here; so is a run whose replica is gone, from where that one
//! stopped. Every write is fenced; one that matches nothing makes the runner look again before it touches anything.

mod attempt;
mod follow;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use self::attempt::Attempt;
use super::{Replica, hosts, until_stored};
use crate::{
    execution::{Killed, RunState, StartSpec, Started, kill, prompt, start, task_environment},
    model::{HostAgentId, Lease, TaskId},
    store::{HeldLease, NewRun, PushClaim, StoreError, TakenOver},
    telemetry::error_chain,
};

/// Between TERM and KILL.
pub(super) const KILL_GRACE: Duration = Duration::from_secs(5);
/// Between two looks for runs whose replica is gone, unless something tells of one.
const PERIOD: Duration = Duration::from_secs(3);
/// A first wait after a start that failed, in seconds; the backoff makes it more.
const START_FAILED_WAIT: i32 = 1;

/// The leases that this replica executes right now.
#[derive(Debug, Default)]
pub(super) struct InHand {
    leases: Mutex<HashSet<HeldLease>>,
}

impl InHand {
    /// True from before a claimed or adopted lease is first worked on until nobody here works on it any more.
    pub(super) fn contains(&self, held: &HeldLease) -> bool {
        self.leases().contains(held)
    }

    /// Whether any lease of this task is worked on here.
    pub(super) fn has_task(&self, task: TaskId) -> bool {
        self.leases().iter().any(|held| held.task_id == task)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.leases().len()
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, HashSet<HeldLease>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Out of hand again when dropped, also by a panic.
struct Hold {
    replica: Arc<Replica>,
    held: HeldLease,
}

impl Hold {
    /// None when somebody here works on it already.
    fn take(replica: &Arc<Replica>, held: HeldLease) -> Option<Self> {
        let new = replica.in_hand.leases().insert(held);
        new.then(|| Self { replica: Arc::clone(replica), held })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.replica.in_hand.leases().remove(&self.held);
    }
}

/// The loop: takes over runs whose replica is gone.
pub(super) async fn run(replica: &Arc<Replica>) {
    while !replica.shutdown.is_draining() {
        tokio::select! {
            () = replica.shutdown.draining() => return,
            () = replica.wake.runner() => {}
            () = tokio::time::sleep(PERIOD.mul_f64(rand::random_range(0.8..1.2))) => {}
        }
        let reachable = replica.hosts.reachable();
        let actor = replica.actor();
        match replica.store.take_over_runs(&reachable, replica.session(), &actor).await {
            Ok(taken) => {
                for run in taken {
                    tracing::info!(
                        task.id = %run.held.task_id,
                        lease = run.held.lease.0,
                        "a run was taken over from a replica that is gone"
                    );
                    adopt(replica, run);
                }
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "no look for orphaned runs was possible");
            }
        }
    }
}

/// Runs a task that was claimed for a host.
pub(super) fn spawn(replica: &Arc<Replica>, claim: PushClaim) {
    // The session under which the claim was made; it may be replaced meanwhile.
    let held = HeldLease { task_id: claim.task_id, lease: claim.lease, holder: claim.session };
    let Some(hold) = Hold::take(replica, held) else { return };
    replica.shutdown.spawn_run(async move {
        report(held, begin(&hold.replica, held, claim.host_agent).await);
    });
}

/// Follows a run on that is this replica's by its lease, and that nobody here works on yet; what never started is given back.
pub(super) fn adopt(replica: &Arc<Replica>, taken: TakenOver) {
    let held = taken.held;
    let Some(hold) = Hold::take(replica, held) else { return };
    replica.shutdown.spawn_run(async move {
        report(held, resume(&hold.replica, taken).await);
    });
}

fn report(held: HeldLease, result: Result<(), StoreError>) {
    if let Err(error) = result {
        tracing::error!(
            task.id = %held.task_id,
            lease = held.lease.0,
            error = %error_chain(&error),
            "a run cannot be handled here any more; its deadline or another replica settles it"
        );
    }
}

/// From the claim to the start, and on.
async fn begin(
    replica: &Arc<Replica>,
    held: HeldLease,
    host_agent: HostAgentId,
) -> Result<(), StoreError> {
    let Some(task) = until_stored!(replica, replica.store.get_task(held.task_id))? else {
        return Ok(());
    };
    let Some(slot) = replica.hosts.slot(host_agent) else {
        // The list of hosts changed between claim and start.
        return attempt::release(replica, held, "its host is no longer listed here", None).await;
    };
    let Some(cli) = replica.config.cli.get(&slot.agent_type) else {
        return attempt::release(replica, held, "its CLI is no longer configured here", None).await;
    };
    let timeout_secs = cli.timeout.map_or(task.timeout_secs, whole_secs);
    let run = NewRun {
        command: &cli.command,
        prompt_via: cli.prompt.as_str(),
        output: cli.output.as_str(),
        work_dir: &slot.host.work_dir,
        timeout_secs,
    };
    if !until_stored!(replica, replica.store.insert_run(&held, &run))? {
        tracing::info!(task.id = %held.task_id, lease = held.lease.0, "a task was taken back before its run began");
        return Ok(());
    }
    let attempt = Attempt::new(
        replica,
        held,
        held.lease,
        (host_agent, slot.clone()),
        cli.output,
        timeout_secs,
    );
    let spec = StartSpec {
        command: cli.command.clone(),
        prompt_via: cli.prompt,
        prompt: prompt(&task).into_bytes(),
        env: task_environment(cli, &task),
        checkout: slot.host.checkout,
        timeout: attempt.timeout,
        kill_grace: KILL_GRACE,
    };
    match attempt.end_earlier_runs().await? {
        Ok(true) => {}
        Ok(false) => {
            let reason = "an earlier run of it cannot be ended on its host";
            return attempt::release(replica, held, reason, Some(START_FAILED_WAIT)).await;
        }
        Err(error) => return give_back(&attempt, &error_chain(&error)).await,
    }
    let begun = match start(attempt.executor.as_ref(), &attempt.run, &spec).await {
        // With the gate there, somebody shut it, or our own first try went through: following tells.
        Ok(Started::Started | Started::GateExists) => true,
        Err(error) if error.is_known_not_started() => {
            return give_back(&attempt, &error_chain(&error)).await;
        }
        Err(error) => {
            tracing::warn!(task.id = %held.task_id, host.id = slot.host.host_id, error = %error_chain(&error), "whether a run was started is not known yet");
            false
        }
    };
    if !attempt.mark_running(begun).await? {
        return attempt.lease_is_gone().await;
    }
    attempt.follow_to_the_end(0).await
}

/// The host does not do as it is told, so nothing has been started there.
async fn give_back(attempt: &Attempt, reason: &str) -> Result<(), StoreError> {
    let (replica, held, host_id) = (&attempt.replica, attempt.held, &attempt.host_id);
    tracing::warn!(task.id = %held.task_id, host.id = host_id, error = reason, "a run could not be started; the task goes back");
    hosts::set_offline(replica, host_id, reason).await;
    attempt::release(replica, held, reason, Some(START_FAILED_WAIT)).await
}

/// A run whose replica is gone: followed on, or, when it never started, prevented and given back.
async fn resume(replica: &Arc<Replica>, taken: TakenOver) -> Result<(), StoreError> {
    let held = taken.held;
    let Some(run) = taken.run else {
        return attempt::release(replica, held, "its replica was gone before the run began", None)
            .await;
    };
    let Some(mut slot) = replica.hosts.slot(taken.host_agent) else {
        // Hosts are being listed anew. The run goes on; the next look for runs in our name finds it.
        return Ok(());
    };
    // A run keeps what it was started with.
    slot.host.work_dir = run.work_dir;
    let attempt = Attempt::new(
        replica,
        held,
        run.run_lease,
        (taken.host_agent, slot),
        run.output,
        run.timeout_secs,
    );
    let found = attempt.state_on_host().await;
    if matches!(found, Ok(RunState::NotStarted))
        && matches!(
            kill(attempt.executor.as_ref(), &attempt.run, KILL_GRACE).await,
            Ok(Killed::NeverStarted)
        )
    {
        if run.started {
            return attempt.fail("nothing is left of its run on the host").await;
        }
        return attempt::release(replica, held, "its replica was gone before the run began", None)
            .await;
    }
    let begun = found.is_ok_and(|state| state != RunState::NotStarted);
    if !attempt.mark_running(begun).await? {
        return attempt.lease_is_gone().await;
    }
    attempt.follow_to_the_end(run.next_offset).await
}

fn whole_secs(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs().max(1)).unwrap_or(i32::MAX)
}
