//! The hosts that this replica lists, and whether it reaches them. Each is probed on its own, so that one that hangs
//! delays no other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tempfile::TempDir;

use super::{MakeExecutor, Replica, StartError, membership, sweep};
use crate::{
    config,
    execution::{Executor, probe},
    model::HostAgentId,
    store::{HostProbe, ListedHost},
    telemetry::error_chain,
};

/// One host, as this replica sees it.
#[derive(Debug)]
struct HostState {
    config: config::Host,
    executor: Arc<dyn Executor>,
    /// Empty when the host is another machine's.
    agents: Vec<(String, HostAgentId)>,
    probe: Option<HostProbe>,
}

/// Where a claimed task runs.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) host: config::Host,
    pub(super) agent_type: String,
    pub(super) executor: Arc<dyn Executor>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Hosts {
    states: Mutex<BTreeMap<String, HostState>>,
    probe_now: tokio::sync::Notify,
    // Holds ssh's control sockets; short, because a socket's path is at most 108 bytes long.
    _control_directory: TempDir,
}

impl Hosts {
    pub(super) fn new(
        hosts: &[config::Host],
        make_executor: &MakeExecutor,
    ) -> Result<Self, StartError> {
        let control_directory = tempfile::Builder::new()
            .prefix("af-")
            .tempdir_in("/tmp")
            .map_err(StartError::ControlDirectory)?;
        let mut states = BTreeMap::new();
        for host in hosts {
            let executor = make_executor(host, control_directory.path())?;
            let config = host.clone();
            let state = HostState { config, executor, agents: Vec::new(), probe: None };
            states.insert(host.host_id.clone(), state);
        }
        Ok(Self {
            states: Mutex::new(states),
            probe_now: tokio::sync::Notify::new(),
            _control_directory: control_directory,
        })
    }

    fn states(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, HostState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the database made of this replica's list.
    pub(super) fn set_listed(&self, listed: Vec<ListedHost>) {
        for state in self.states().values_mut() {
            state.agents = Vec::new();
        }
        self.add_listed(listed);
    }

    /// The same for some of it.
    pub(super) fn add_listed(&self, listed: Vec<ListedHost>) {
        let mut states = self.states();
        for host in listed {
            if let Some(state) = states.get_mut(&host.host_id) {
                state.agents = host.agents;
                // A new session has yet to say what this replica's probes found.
                state.probe = None;
            }
        }
        drop(states);
        self.probe_now.notify_waiters();
    }

    /// Host agents that can be dispatched to from here.
    pub(super) fn reachable(&self) -> Vec<HostAgentId> {
        let states = self.states();
        let mut ids: Vec<HostAgentId> = states
            .values()
            .filter_map(|state| Some((state, state.probe.as_ref().filter(|p| p.online)?)))
            .flat_map(|(state, probe)| {
                state.agents.iter().filter(|(t, _)| !probe.missing.contains(t)).map(|(_, id)| *id)
            })
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Each host, and whether its last probe reached it.
    pub(super) fn online(&self) -> Vec<(String, bool)> {
        let states = self.states();
        let reached = |state: &HostState| state.probe.as_ref().is_some_and(|p| p.online);
        states.iter().map(|(host_id, state)| (host_id.clone(), reached(state))).collect()
    }

    /// Where the tasks of a host agent run.
    pub(super) fn slot(&self, host_agent: HostAgentId) -> Option<Slot> {
        let states = self.states();
        states.values().find_map(|state| {
            let (agent_type, _) = state.agents.iter().find(|(_, id)| *id == host_agent)?;
            Some(Slot {
                host: state.config.clone(),
                agent_type: agent_type.clone(),
                executor: Arc::clone(&state.executor),
            })
        })
    }

    /// Records what was found; returns true when the host has just come online, or what it offers has changed.
    fn record(&self, host_id: &str, found: &HostProbe) -> bool {
        let mut states = self.states();
        let Some(state) = states.get_mut(host_id) else { return false };
        let changed = state.probe.as_ref() != Some(found);
        state.probe = Some(found.clone());
        changed
    }

    /// Closes connections.
    pub(super) async fn close(&self) {
        let executors: Vec<_> =
            self.states().values().map(|state| Arc::clone(&state.executor)).collect();
        for executor in executors {
            executor.reconnect().await;
        }
    }
}

/// The loop: one prober a host.
pub(super) async fn run(replica: &Arc<Replica>) {
    let hosts: Vec<config::Host> = replica.config.hosts.clone();
    for host in hosts {
        let prober = Arc::clone(replica);
        replica.shutdown.spawn(async move {
            while !prober.shutdown.is_triggered() {
                let (own, at) = (Arc::clone(&prober), host.clone());
                // In a task of its own: a panic costs one look, not the prober.
                let looking = tokio::spawn(async move { look(&own, &at).await });
                tokio::select! {
                    () = prober.shutdown.triggered() => break,
                    looked = looking => if looked.is_err() {
                        tracing::error!(host.id = host.host_id, "a probe panicked");
                    },
                }
                let pause = prober.config.dispatch.interval.mul_f64(rand::random_range(0.8..1.2));
                tokio::select! {
                    () = prober.shutdown.triggered() => {}
                    () = tokio::time::sleep(pause.max(Duration::from_millis(200))) => {}
                    () = prober.hosts.probe_now.notified() => {}
                    () = prober.wake.prober() => {}
                }
            }
        });
    }
}

/// A host could not be reached while a run was to be started: it is offline until its next probe.
pub(super) async fn set_offline(replica: &Replica, host_id: &str, reason: &str) {
    let found = HostProbe { online: false, reason: Some(reason.to_owned()), missing: Vec::new() };
    store(replica, host_id, &found).await;
}

/// Looked for beside the CLIs on a host with `checkout`. No agent type has such a name.
const GIT: &str = "git, for checkout";

/// What must be on a host: pairs of an agent type, or what else it is for, and the program.
pub(crate) fn programs_of(config: &config::Config, host: &config::Host) -> Vec<(String, String)> {
    let clis = host.agents.iter().filter_map(|agent| {
        let program = config.cli.get(&agent.agent_type)?.command.first()?;
        Some((agent.agent_type.clone(), program.clone()))
    });
    let git = host.checkout.then(|| (GIT.to_owned(), "git".to_owned()));
    clis.chain(git).collect()
}

async fn look(replica: &Replica, host: &config::Host) {
    let slot = {
        let states = replica.hosts.states();
        states.get(&host.host_id).map(|s| (Arc::clone(&s.executor), s.agents.is_empty()))
    };
    let Some((executor, not_ours)) = slot else { return };
    if not_ours {
        return membership::list_again(replica, host).await;
    }
    let programs = programs_of(&replica.config, host);
    let clis = programs.len() - usize::from(host.checkout);
    let found = match probe(executor.as_ref(), &host.work_dir, replica.fleet_id, &programs).await {
        Err(error) => {
            HostProbe { online: false, reason: Some(error_chain(&error)), missing: Vec::new() }
        }
        Ok(mut report) => {
            if let Some(Err(why)) = report.programs.remove(GIT) {
                report.problem.get_or_insert(format!("checkout: {why}"));
            }
            if report.problem.is_none() {
                // Before anything new starts there.
                sweep::sweep(replica, host, executor.as_ref(), &report.runs).await;
            }
            let missing: Vec<(String, String)> = report
                .programs
                .into_iter()
                .filter_map(|(agent_type, found)| Some((agent_type, found.err()?)))
                .collect();
            let none_left = clis > 0 && missing.len() == clis;
            let mut reasons: Vec<String> = report.problem.iter().cloned().collect();
            reasons.extend(missing.iter().map(|(agent_type, why)| format!("{agent_type}: {why}")));
            HostProbe {
                online: report.problem.is_none() && !none_left,
                reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
                missing: missing.into_iter().map(|(agent_type, _)| agent_type).collect(),
            }
        }
    };
    store(replica, &host.host_id, &found).await;
}

async fn store(replica: &Replica, host_id: &str, found: &HostProbe) {
    let session = replica.session();
    if let Err(error) = replica.store.set_host_probe(session, host_id, found).await {
        tracing::warn!(host.id = host_id, error = %error_chain(&error), "what a host's probe found was not stored");
    }
    if replica.hosts.record(host_id, found) {
        if found.online {
            tracing::info!(host.id = host_id, reason = found.reason, "host is online");
            replica.host_is_back();
        } else {
            tracing::warn!(host.id = host_id, reason = found.reason, "host is offline");
        }
    }
}
