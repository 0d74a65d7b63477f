//! Actors that act on a [`Store`] directly: agents, replicas and hosts without a process behind them.

use std::{collections::BTreeMap, time::Duration};

use agent_fleet::{
    config,
    model::{
        Actor, AgentId, CapabilitySet, ExecutionMode, HostAgentId, Lease, Priority, Receipt,
        ReceiptStatus, SessionId, Source, TaskId,
    },
    store::{
        Created, Creation, Credential, EndLease, Ended, HeldLease, HostListing, NewRequest,
        NewTask, Outcome, Registration, Store, Waiter,
    },
};
use sha2::{Digest, Sha256};

/// No test takes so long.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// A backoff that is over at once.
pub(crate) const NOW: Duration = Duration::ZERO;
/// A machine for `localhost` hosts.
pub(crate) const MACHINE: &str = "machine-1";

/// Who acts where it does not matter.
pub(crate) fn operator() -> Actor {
    Actor::Operator("admin")
}

/// A task with these labels, without retries to spare.
pub(crate) fn task(labels: &[&str], execution_mode: ExecutionMode) -> NewTask {
    NewTask {
        key: None,
        source: Source::Api,
        title: "a task".into(),
        body: String::new(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
        capabilities: CapabilitySet::required(labels).unwrap().as_slice().to_vec(),
        priority: Priority::Normal,
        execution_mode,
        max_retries: 0,
        timeout_secs: 3600,
        run_at: None,
        repo: None,
        issue_url: None,
        issue_version: None,
        issue_open: None,
        traceparent: None,
    }
}

/// Creates `count` of them.
pub(crate) async fn create(store: &Store, task: NewTask, count: usize) -> Vec<TaskId> {
    match create_all(store, vec![task; count]).await {
        Created::New(ids) => ids,
        other => panic!("{other:?}"),
    }
}

/// Creates these, and tells the store where they are.
pub(crate) async fn hinted(store: &Store, tasks: Vec<NewTask>) -> Vec<TaskId> {
    let made = request_all(store, tasks).await;
    store.ready_at(&made.places);
    made.tasks.iter().map(|task| task.task_id).collect()
}

/// One request for these.
pub(crate) async fn create_all(store: &Store, tasks: Vec<NewTask>) -> Created {
    request_all(store, tasks).await.outcome
}

async fn request_all(store: &Store, tasks: Vec<NewTask>) -> Creation {
    let request = NewRequest { tasks, idempotency_key: None, actor: operator() };
    Box::pin(store.create_tasks(&request, &|_| false)).await.unwrap()
}

/// Registers an agent; its session. What it held is lost, as the API has it.
pub(crate) async fn agent(store: &Store, id: &str, capabilities: &[&str], slots: i32) -> SessionId {
    agent_for(store, id, capabilities, slots, HOUR).await
}

/// The same with a time after which its silence is death.
pub(crate) async fn agent_for(
    store: &Store,
    id: &str,
    capabilities: &[&str],
    slots: i32,
    ttl: Duration,
) -> SessionId {
    let registration = Registration {
        agent_id: AgentId::parse(id).unwrap(),
        agent_type: "test".into(),
        hostname: "here".into(),
        capabilities: CapabilitySet::offered(capabilities).unwrap(),
        max_concurrency: slots,
        metadata: serde_json::json!({}),
    };
    let token: [u8; 32] = Sha256::digest(uuid::Uuid::now_v7().as_bytes()).into();
    let registered = store.register_agent(&registration, Credential::Admin, &token, ttl, &[]).await;
    registered.unwrap().unwrap().session
}

/// A host of one CLI, `ok`.
pub(crate) fn host(id: &str, capabilities: &[&str], slots: u32) -> config::Host {
    config::Host {
        host_id: id.into(),
        hostname: "localhost".into(),
        ssh_user: None,
        ssh_port: 22,
        ssh_key_path: None,
        known_hosts_path: None,
        work_dir: "/nowhere".into(),
        checkout: false,
        agents: vec![config::HostAgent {
            agent_type: "ok".into(),
            max_concurrency: slots,
            capabilities: CapabilitySet::offered(capabilities).unwrap(),
        }],
    }
}

/// A replica that has booted and listed its hosts: its session, and its host agents by host.
pub(crate) async fn replica(
    store: &Store,
    id: &str,
    hosts: &[config::Host],
) -> (SessionId, BTreeMap<String, HostAgentId>) {
    let session = store.begin_replica(id, "here", MACHINE, HOUR).await.unwrap();
    let listing = HostListing { replica_id: id, session, machine: MACHINE, hosts };
    let listed = store.upsert_hosts(listing).await.unwrap();
    (session, listed.into_iter().map(|h| (h.host_id, h.agents[0].1)).collect())
}

/// One claim for one agent.
pub(crate) async fn pull(store: &Store, session: SessionId) -> Option<HeldLease> {
    let claims = store.claim_for_agents(&[Waiter::one(session)], true).await.unwrap().claimed;
    let (_, task_id, lease) = claims.first()?;
    Some(HeldLease { task_id: *task_id, lease: *lease, holder: session })
}

/// One claim for host agents.
pub(crate) async fn push(
    store: &Store,
    session: SessionId,
    slots: &[HostAgentId],
) -> Vec<HeldLease> {
    let actor = Actor::Replica("r".into());
    let (claims, _) = store.claim_for_hosts(slots, session, &actor).await.unwrap();
    claims
        .iter()
        .map(|c| HeldLease { task_id: c.task_id, lease: c.lease, holder: c.session })
        .collect()
}

/// The end of a lease without a receipt.
pub(crate) fn ending(held: HeldLease, outcome: Outcome) -> EndLease {
    EndLease {
        held,
        outcome,
        reason: Some("test".into()),
        wait_secs: None,
        receipt: None,
        actor: Actor::Agent("a".into()),
    }
}

/// Ends a lease without a receipt.
pub(crate) async fn end(store: &Store, held: HeldLease, outcome: Outcome) -> Ended {
    store.end_leases(&[ending(held, outcome)], NOW).await.unwrap()[0]
}

/// The same receipt each time.
pub(crate) fn completion(held: HeldLease) -> EndLease {
    let receipt = Receipt {
        status: ReceiptStatus::Completed,
        duration_seconds: None,
        summary: Some("done".into()),
        artifacts: Vec::new(),
        error: None,
        usage: None,
    };
    EndLease {
        held,
        outcome: Outcome::Completed,
        reason: None,
        wait_secs: None,
        receipt: Some(receipt),
        actor: Actor::Agent("a".into()),
    }
}

/// Sends it.
pub(crate) async fn complete(store: &Store, held: HeldLease) -> Ended {
    store.end_leases(&[completion(held)], NOW).await.unwrap()[0]
}

/// The lease after this one.
pub(crate) fn next(lease: Lease) -> Lease {
    Lease(lease.0 + 1)
}
