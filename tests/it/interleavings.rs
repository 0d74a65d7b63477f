//! Random interleavings of what several actors do to a few tasks, and what must hold after each step.

use std::collections::BTreeMap;

use agent_fleet::{
    model::{Actor, ExecutionMode as Mode, HostAgentId, SessionId, Status, TaskId},
    store::{HeldLease, NewTask, Outcome, Store},
};
use futures_util::future::join_all;
use proptest::prelude::*;

use crate::support::{
    db::Db,
    fleet::{HOUR, NOW, agent, complete, create, end, host, operator, pull, push, replica, task},
    property,
};

/// One act. Numbers choose among tasks, agents, replicas, or all the leases that were ever handed out, stale ones as well.
#[derive(Debug, Clone, Copy)]
enum Act {
    Pull(usize),
    Push(usize),
    Start(usize),
    Complete(usize),
    End(usize, Outcome),
    /// A claim whose caller has gone.
    Vanish(usize),
    Cancel(usize),
    Retry(usize),
    Pin(usize, usize),
    ExpirePins,
    Due,
    Decide,
    Register(usize),
    AgentDies(usize),
    Boot(usize),
    ReplicaDies(usize),
    TakeOver(usize),
    Reap,
    /// Deadlines pass.
    Expire,
}

fn act() -> impl Strategy<Value = Act> {
    let n = 0..64_usize;
    let outcome = prop_oneof![
        Just(Outcome::Failed),
        Just(Outcome::TimedOut),
        Just(Outcome::Lost),
        Just(Outcome::Released),
    ];
    prop_oneof![
        6 => n.clone().prop_map(Act::Pull),
        4 => n.clone().prop_map(Act::Push),
        3 => n.clone().prop_map(Act::Start),
        4 => n.clone().prop_map(Act::Complete),
        5 => (n.clone(), outcome).prop_map(|(n, o)| Act::End(n, o)),
        2 => n.clone().prop_map(Act::Vanish),
        2 => n.clone().prop_map(Act::Cancel),
        2 => n.clone().prop_map(Act::Retry),
        2 => (n.clone(), n.clone()).prop_map(|(t, to)| Act::Pin(t, to)),
        1 => Just(Act::ExpirePins),
        3 => Just(Act::Due),
        1 => Just(Act::Decide),
        2 => n.clone().prop_map(Act::Register),
        1 => n.clone().prop_map(Act::AgentDies),
        1 => n.clone().prop_map(Act::Boot),
        1 => n.clone().prop_map(Act::ReplicaDies),
        2 => n.prop_map(Act::TakeOver),
        2 => Just(Act::Reap),
        1 => Just(Act::Expire),
    ]
}

/// As often an attempt is refunded at most.
const REFUNDS: i64 = 5;
const AGENTS: [&str; 2] = ["a", "b"];
const REPLICAS: [&str; 2] = ["r1", "r2"];

struct World<'a> {
    db: &'a Db,
    store: Store,
    tasks: Vec<TaskId>,
    agents: Vec<SessionId>,
    boots: Vec<SessionId>,
    slots: Vec<HostAgentId>,
    /// Every lease that anybody was ever told to have.
    leases: Vec<HeldLease>,
    /// Where each task stood: its lease, its status.
    seen: BTreeMap<TaskId, (i64, Status)>,
}

/// What an act changes of the world beside the database.
enum Told {
    Nothing,
    Leases(Vec<HeldLease>),
    Agent(usize, SessionId),
    Boot(usize, SessionId),
}

impl<'a> World<'a> {
    async fn new(db: &'a Db) -> Self {
        db.execute(
            "truncate fleet.tasks, fleet.task_specs, fleet.task_events, fleet.receipts, fleet.runs, fleet.task_logs,
                      fleet.agents, fleet.sessions, fleet.replicas, fleet.replica_hosts, fleet.cancel_notices",
        )
        .await;
        let store = db.store();
        let mut tasks = Vec::new();
        for mode in [Mode::Undecided, Mode::Undecided, Mode::HttpPull, Mode::SshCli] {
            let new = NewTask { max_retries: 1, ..task(&["agent:x"], mode) };
            tasks.extend(create(&store, new, 1).await);
        }
        let mut world = Self {
            db,
            store,
            tasks,
            agents: Vec::new(),
            boots: Vec::new(),
            slots: Vec::new(),
            leases: Vec::new(),
            seen: BTreeMap::new(),
        };
        for name in AGENTS {
            world.agents.push(agent(&world.store, name, &["agent:x"], 2).await);
        }
        for name in REPLICAS {
            let (boot, slots) = replica(&world.store, name, &[host("h", &["agent:x"], 2)]).await;
            world.boots.push(boot);
            world.slots = slots.into_values().collect();
        }
        world
    }

    async fn act(&self, act: Act) -> Told {
        let store = &self.store;
        let task = |n: usize| self.tasks[n % self.tasks.len()];
        let lease = |n: usize| {
            // The newest ones are the most interesting.
            let at = self.leases.len().checked_sub(1 + n % self.leases.len().clamp(1, 8))?;
            self.leases.get(at).copied()
        };
        let actor = Actor::Replica("r".into());
        match act {
            Act::Pull(n) => {
                return Told::Leases(
                    pull(store, self.agents[n % AGENTS.len()]).await.into_iter().collect(),
                );
            }
            Act::Push(n) => {
                return Told::Leases(
                    push(store, self.boots[n % REPLICAS.len()], &self.slots).await,
                );
            }
            Act::TakeOver(n) => {
                let me = self.boots[n % REPLICAS.len()];
                let taken = store.take_over_runs(&self.slots, me, &actor).await.unwrap();
                return Told::Leases(taken.into_iter().map(|t| t.held).collect());
            }
            Act::Register(n) => {
                let n = n % AGENTS.len();
                return Told::Agent(n, agent(store, AGENTS[n], &["agent:x"], 2).await);
            }
            Act::Boot(n) => {
                let n = n % REPLICAS.len();
                let hosts = [host("h", &["agent:x"], 2)];
                return Told::Boot(n, replica(store, REPLICAS[n], &hosts).await.0);
            }
            Act::Start(n) => {
                if let Some(held) = lease(n) {
                    let none = serde_json::json!({});
                    let _ = store.start_task(&held, &actor, none, None).await.unwrap();
                }
            }
            Act::Complete(n) => {
                if let Some(held) = lease(n) {
                    complete(store, held).await;
                }
            }
            Act::End(n, outcome) => {
                if let Some(held) = lease(n) {
                    end(store, held, outcome).await;
                }
            }
            Act::Vanish(n) => {
                if let Some(held) = pull(store, self.agents[n % AGENTS.len()]).await {
                    end(store, held, Outcome::Undone).await;
                }
            }
            Act::Cancel(n) => {
                let _ = store.cancel_task(task(n), &operator(), None).await.unwrap();
            }
            Act::Retry(n) => {
                let _ = store.retry_task(task(n), &operator(), None).await.unwrap();
            }
            Act::Pin(t, to) => {
                let (target, mode) =
                    [("a", Mode::HttpPull), ("b", Mode::HttpPull), ("h", Mode::SshCli)][to % 3];
                let _ = store.assign_task(task(t), target, mode, HOUR, &operator()).await.unwrap();
            }
            Act::ExpirePins => {
                self.db
                    .execute("update fleet.tasks set pinned_until = now() where pinned_until is not null")
                    .await;
                store.expire_pins(&actor).await.unwrap();
            }
            Act::Due => {
                self.db
                    .execute("update fleet.tasks set run_at = now() where status = 'scheduled'")
                    .await;
                store.promote_due_tasks(&actor).await.unwrap();
            }
            Act::Decide => {
                store.decide_pull(std::time::Duration::ZERO, &actor).await.unwrap();
            }
            Act::AgentDies(n) => {
                store.end_session(self.agents[n % AGENTS.len()], "silent").await.unwrap();
            }
            Act::ReplicaDies(n) => {
                store.end_session(self.boots[n % REPLICAS.len()], "silent").await.unwrap();
            }
            Act::Reap => {
                for (held, _) in store.list_lost_leases(10).await.unwrap() {
                    end(store, held, Outcome::Lost).await;
                }
            }
            Act::Expire => {
                self.db
                    .execute(
                        "update fleet.tasks set deadline_at = now() where deadline_at is not null",
                    )
                    .await;
                for held in store.list_expired_leases(NOW, 10).await.unwrap() {
                    end(store, held, Outcome::TimedOut).await;
                }
            }
        }
        Told::Nothing
    }

    /// What must hold now. `retried` are tasks that somebody wanted again in this step.
    async fn check(&mut self, retried: &[TaskId]) {
        for row in self.store.get_tasks(&self.tasks).await.unwrap() {
            let before = self.seen.insert(row.task_id, (row.lease.0, row.status));
            if let Some((lease, status)) = before {
                assert!(row.lease.0 >= lease, "the lease of {} fell", row.task_id);
                if status.is_terminal() && row.status != status {
                    assert!(retried.contains(&row.task_id), "{status} became {}", row.status);
                }
            }
            assert!(row.attempt >= 0 && i64::from(row.attempt) <= row.lease.0);
            assert!(row.retry_count <= row.max_retries, "{} was retried too often", row.task_id);
        }
        let sql = "select coalesce(max(refund_count), 0)::bigint from fleet.tasks";
        assert!(self.db.count(sql).await <= REFUNDS, "refunds are bounded");
        for id in &self.tasks {
            let state = self.store.check_lease(*id).await.unwrap().unwrap();
            let told: Vec<_> =
                self.leases.iter().filter(|l| l.task_id == *id && state.is_held_by(l)).collect();
            assert!(told.len() <= 1, "two hold {id}: {told:?}");
            assert_eq!(
                told.len(),
                usize::from(state.holder.is_some()),
                "a holder knows of its lease"
            );
        }
        let over = self
            .db
            .count(
                "select count(*) from (select holder, host_agent_id from fleet.tasks where holder is not null
                   group by coalesce(host_agent_id::text, holder::text), holder, host_agent_id having count(*) > 2) x",
            )
            .await;
        assert_eq!(over, 0, "more leases than slots");
    }

    fn learn(&mut self, told: Told) {
        match told {
            Told::Nothing => {}
            Told::Leases(leases) => {
                for lease in leases {
                    let twice = self
                        .leases
                        .iter()
                        .any(|l| (l.task_id, l.lease) == (lease.task_id, lease.lease));
                    assert!(!twice, "{lease:?} was handed out twice");
                    self.leases.push(lease);
                }
            }
            Told::Agent(n, session) => self.agents[n] = session,
            Told::Boot(n, session) => self.boots[n] = session,
        }
    }
}

#[test]
fn no_interleaving_breaks_what_must_hold() {
    let steps = prop::collection::vec(prop::collection::vec(act(), 1..4), 1..20);
    property::check("tests/it/regressions/interleavings.txt", 24, &steps, async |db, steps| {
        let mut world = World::new(db).await;
        for step in steps {
            // The acts of one step at once.
            let told = join_all(step.iter().map(|act| world.act(*act))).await;
            told.into_iter().for_each(|told| world.learn(told));
            let retried: Vec<TaskId> = step
                .iter()
                .filter_map(|act| match act {
                    Act::Retry(n) => Some(world.tasks[n % world.tasks.len()]),
                    _ => None,
                })
                .collect();
            world.check(&retried).await;
        }
        world.db.check_history().await;
        world.store.close();
    });
}
