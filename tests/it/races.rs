//! Everybody at once: dispatchers and dequeues on three replicas, and storms of everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_fleet::{
    model::{Actor, ExecutionMode as Mode, SessionId, TaskId},
    store::{AgentBeat, Created, EndLease, Ended, HeldLease, NewTask, Outcome, Start, Store},
};
use futures_util::future::join_all;
use serde_json::json;

use crate::{
    dispatch::{dir, local},
    support::{
        db::{Db, sql},
        eventually,
        fleet::{
            agent, complete, create, create_all, end, ending, host, operator, pull, push, replica,
            task,
        },
        node::Node,
    },
};

const TASKS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn dispatchers_and_dequeues_of_three_replicas_race_for_the_same_tasks() {
    let (db, dir) = (Db::new().await, dir());
    let ran = dir.path().join("ran");
    let script = format!("cat >/dev/null; echo $AGENT_FLEET_TASK_ID >>{}", ran.display());
    let toml = local(&dir, &script, 8, &["agent:code"]);
    let mut nodes = Vec::new();
    for name in ["r1", "r2", "r3"] {
        nodes.push(Arc::new(Node::start(&db, name, &toml).await));
    }
    for node in &nodes {
        node.until_host("h", "online").await;
    }
    let all_done = Arc::new(AtomicBool::new(false));
    let mut agents = Vec::new();
    for n in 0..6 {
        let (node, done) = (Arc::clone(&nodes[n % 3]), Arc::clone(&all_done));
        let name = format!("a{n}");
        node.register(&name, &["agent:code"], 1).await;
        agents.push(tokio::spawn(async move {
            let mut got = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if let Some(task) = node.dequeue(&name, 1).await {
                    assert_eq!(node.complete(&task, &name).await.0.as_u16(), 200);
                    got.push(task["task_id"].as_str().unwrap().to_owned());
                    // Work takes time; else the hosts would come too late for all of them.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            got
        }));
    }
    let created = join_all((0..4).map(|n| {
        let node = &nodes[n % 3];
        let batch: Vec<_> = (0..TASKS / 4)
            .map(|_| json!({"title": "raced for", "labels": ["agent:code"]}))
            .collect();
        async move { node.must("/api/v1/tasks", json!(batch)).await }
    }))
    .await;
    let created: BTreeSet<String> = created
        .iter()
        .flat_map(|batch| batch.as_array().unwrap())
        .map(|task| task["task_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(created.len(), TASKS);
    eventually("all are done", async || {
        let left = db.count("select count(*) from fleet.tasks where status <> 'completed'").await;
        (left == 0).then_some(())
    })
    .await;
    all_done.store(true, Ordering::Relaxed);
    let mut pulled = Vec::new();
    for agent in agents {
        pulled.extend(agent.await.unwrap());
    }
    let pushed: Vec<String> =
        std::fs::read_to_string(&ran).unwrap_or_default().lines().map(str::to_owned).collect();

    // Each ran once, here or there, and none is lost.
    assert_eq!(pulled.len() + pushed.len(), TASKS);
    let both: BTreeSet<String> = pulled.iter().chain(&pushed).cloned().collect();
    assert_eq!(both, created);
    assert!(!pulled.is_empty() && !pushed.is_empty(), "it was a race");
    // The event log tells the same, exactly.
    let rows = db
        .rows("select type, detail ->> 'execution_mode', count(*) from fleet.task_events group by 1, 2", &[])
        .await;
    let mut counts: BTreeMap<(String, Option<String>), i64> = BTreeMap::new();
    for row in rows {
        counts.insert((row.get(0), row.get(1)), row.get(2));
    }
    let mut count = |event: &str, mode: Option<&str>| {
        let key = (event.to_owned(), mode.map(str::to_owned));
        usize::try_from(counts.remove(&key).unwrap_or(0)).unwrap()
    };
    assert_eq!(count("created", Some("undecided")), TASKS);
    // A claim whose poll had run out meanwhile was undone, and is claimed again.
    let undone = count("undone", None);
    assert_eq!(count("claimed", Some("http_pull")), pulled.len() + undone);
    assert_eq!(count("claimed", Some("ssh_cli")), pushed.len());
    assert_eq!(count("completed", None), TASKS);
    assert_eq!(count("started", None), pushed.len());
    assert!(counts.is_empty(), "nothing else happened: {counts:?}");
    assert_eq!(
        db.count("select count(*) from fleet.receipts").await,
        i64::try_from(TASKS).unwrap()
    );
    assert_eq!(
        db.count(
            "select count(*) from fleet.tasks t
              where attempt <> 1 or holder is not null
                 or lease <> 1 + (select count(*) from fleet.task_events e
                                   where e.task_id = t.task_id and e.type = 'undone')",
        )
        .await,
        0
    );
    db.check_history().await;
    for node in nodes {
        Arc::into_inner(node).unwrap().stop().await;
    }
}

/// One actor of the storm: does something at random, again and again; that it is refused is part of it.
async fn rage(store: Store, me: usize, tasks: Arc<Vec<TaskId>>) {
    let name = format!("a{}", me % 3);
    let mut session = agent(&store, &name, &["agent:x"], 5).await;
    let hosts = [host("h", &["agent:x"], 5), host("g", &["agent:x", "agent:y"], 5)];
    let (mut boot, slots) = replica(&store, &format!("r{me}"), &hosts).await;
    let slots: Vec<_> = slots.into_values().collect();
    let actor = Actor::Replica(format!("r{me}"));
    for round in 0..120 {
        let task_id = tasks[rand::random_range(0..tasks.len())];
        match rand::random_range(0..16) {
            0..=3 => {
                if let Some(held) = pull(&store, session).await {
                    store.start_task(&held, &actor, json!({}), None).await.unwrap().ok();
                    store.append_log(&held, 0, b"log").await.unwrap();
                    complete(&store, held).await;
                }
            }
            4..=6 => {
                let held = push(&store, boot, &slots).await;
                let mut ends = Vec::new();
                for held in held {
                    ends.push(agent_fleet::store::EndLease {
                        held,
                        outcome: [
                            Outcome::Failed,
                            Outcome::Released,
                            Outcome::Lost,
                            Outcome::Completed,
                        ][round % 4],
                        reason: None,
                        wait_secs: None,
                        receipt: None,
                        actor: actor.clone(),
                    });
                }
                store.end_leases(&ends, Duration::ZERO).await.unwrap();
            }
            7 | 8 => {
                let _ = store.cancel_task(task_id, &operator(), None).await.unwrap();
            }
            9 => {
                let _ = store.retry_task(task_id, &operator(), None).await.unwrap();
            }
            10 => {
                let (target, mode) = [("a0", Mode::HttpPull), ("h", Mode::SshCli)][round % 2];
                let _ = store
                    .assign_task(task_id, target, mode, Duration::from_millis(1), &operator())
                    .await
                    .unwrap();
            }
            11 => session = agent(&store, &name, &["agent:x"], 5).await,
            12 => {
                boot = replica(&store, &format!("r{me}"), &hosts).await.0;
                store.take_over_runs(&slots, boot, &actor).await.unwrap();
            }
            13 => {
                store.promote_due_tasks(&actor).await.unwrap();
                store.expire_pins(&actor).await.unwrap();
                store.decide_pull(Duration::ZERO, &actor).await.unwrap();
            }
            14 => {
                let sessions = [boot, session, SessionId(uuid::Uuid::nil())];
                store
                    .touch_sessions(&sessions.map(|s| (s, std::time::Instant::now())))
                    .await
                    .unwrap();
                store.end_silent_sessions(boot, 10).await.unwrap();
                for (held, _) in store.list_lost_leases(20).await.unwrap() {
                    end(&store, held, Outcome::Lost).await;
                }
            }
            _ => {
                // Keys and sets that others use at the same moment, in another order.
                let mut new: Vec<NewTask> = (0..4)
                    .map(|n| NewTask {
                        key: Some(format!("k{round}-{n}")),
                        ..task(&[&format!("agent:{}", (n + me) % 4)], Mode::Undecided)
                    })
                    .collect();
                if me % 2 == 1 {
                    new.reverse();
                }
                create_all(&store, new).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_everything_never_deadlocks() {
    let db = Db::new().await;
    let store = db.store();
    let mut tasks =
        create(&store, NewTask { max_retries: 3, ..task(&["agent:x"], Mode::Undecided) }, 30).await;
    tasks.extend(create(&store, task(&[], Mode::HttpPull), 10).await);
    tasks.extend(create(&store, task(&["agent:y"], Mode::SshCli), 10).await);
    let tasks = Arc::new(tasks);
    let stores: Vec<Store> = (0..6).map(|_| db.store()).collect();
    let raging = stores
        .iter()
        .enumerate()
        .map(|(me, store)| tokio::spawn(rage(store.clone(), me, Arc::clone(&tasks))));
    for one in raging.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    db.check_history().await;
    // A backend that ends has counted what it saw.
    stores.iter().for_each(Store::close);
    store.close();
    eventually("the connections are gone", async || {
        let others = db
            .count("select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
            .await;
        (others == 0).then_some(())
    })
    .await;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(db.count(deadlocks).await, 0, "somebody locks in another order");

    // And that number would have told.
    let (mut one, mut two) = (db.connect().await, db.connect().await);
    let lock = |id: TaskId| format!("select 1 from fleet.tasks where task_id = '{id}' for update");
    {
        let (one, two) = (one.transaction().await.unwrap(), two.transaction().await.unwrap());
        one.batch_execute(&lock(tasks[0])).await.unwrap();
        two.batch_execute(&lock(tasks[1])).await.unwrap();
        let (first, second) = (lock(tasks[1]), lock(tasks[0]));
        let (a, b) = tokio::join!(one.batch_execute(&first), two.batch_execute(&second));
        assert!(a.is_err() || b.is_err());
    }
    drop((one, two));
    eventually("the deadlock is counted", async || (db.count(deadlocks).await == 1).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_registers_everywhere_at_once_has_one_session_and_one_lease() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 50).await;
    let sessions = join_all((0..12).map(|_| {
        let store = db.store();
        tokio::spawn(async move {
            let session = agent(&store, "a", &[], 1).await;
            (session, pull(&store, session).await)
        })
    }))
    .await;
    assert_eq!(sessions.len(), 12);
    assert_eq!(db.count("select count(*) from fleet.sessions where ended_at is null").await, 1);
    for (held, _) in store.list_lost_leases(100).await.unwrap() {
        end(&store, held, Outcome::Lost).await;
    }
    let held = db.count("select count(*) from fleet.tasks where holder is not null").await;
    assert!(held <= 1, "{held} leases for one slot");
    let foreign = db
        .count(
            "select count(*) from fleet.tasks t join fleet.sessions s on s.session_id = t.holder where s.ended_at is not null",
        )
        .await;
    assert_eq!(foreign, 0);
    db.check_history().await;
}

/// Runs an act while somebody has the first of these rows locked, and sees that it waits there without having any of the
/// others.
async fn waits_for_the_first(
    db: &Db,
    table: &str,
    id: &str,
    mut ids: Vec<uuid::Uuid>,
    act: impl Future<Output = ()> + Send + 'static,
) {
    ids.sort_unstable();
    let (first, others) = ids.split_first().unwrap();
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    let lock = format!("select from fleet.{table} where {id} = any ($1) for update nowait");
    tx.execute(&lock, &[&vec![first]]).await.unwrap();
    let acting = tokio::spawn(act);
    db.until_waiting(1).await;
    tx.execute(&lock, &[&others]).await.expect("it has them before the first one");
    tx.rollback().await.unwrap();
    acting.await.unwrap();
}

#[tokio::test]
async fn rows_are_locked_in_the_order_of_their_ids_whatever_the_order_of_the_items() {
    let db = Db::new().await;
    let store = db.store();
    let sessions = [agent(&store, "a", &[], 9).await, agent(&store, "b", &[], 9).await];
    for backwards in [false, true] {
        let in_order = |mut all: Vec<HeldLease>| {
            all.sort_unstable_by_key(|held| held.task_id.0);
            if backwards {
                all.reverse();
            }
            all
        };
        create(&store, task(&[], Mode::Undecided), 3).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(pull(&store, sessions[0]).await.unwrap());
        }
        let held = in_order(held);
        let ids = || held.iter().map(|held| held.task_id.0).collect();
        let starts: Vec<Start> = held
            .iter()
            .map(|held| {
                let actor = Actor::Agent("a".into());
                Start { held: *held, actor, detail: json!({}), timeout_secs: None }
            })
            .collect();
        let own = store.clone();
        Box::pin(waits_for_the_first(&db, "tasks", "task_id", ids(), async move {
            for started in own.start_tasks(&starts, false).await.unwrap() {
                started.status.unwrap();
            }
        }))
        .await;
        let ends: Vec<EndLease> =
            held.iter().map(|held| ending(*held, Outcome::Completed)).collect();
        let own = store.clone();
        Box::pin(waits_for_the_first(&db, "tasks", "task_id", ids(), async move {
            let ended = own.end_leases(&ends, Duration::ZERO).await.unwrap();
            assert!(ended.iter().all(|ended| matches!(ended, Ended::Now(_))), "{ended:?}");
        }))
        .await;

        let mut beating = sessions.to_vec();
        beating.sort_unstable_by_key(|session| session.0);
        if backwards {
            beating.reverse();
        }
        let ids = beating.iter().map(|session| session.0).collect();
        let arrived = std::time::Instant::now();
        let beats: Vec<AgentBeat> = beating
            .into_iter()
            .map(|session| AgentBeat { session, running: None, arrived })
            .collect();
        let own = store.clone();
        waits_for_the_first(&db, "sessions", "session_id", ids, async move {
            assert!(own.beat_agents(&beats).await.unwrap().iter().all(Option::is_some));
        })
        .await;
    }
    db.check_history().await;
}

/// Runs an act while somebody has inserted the first of these names, and sees that it waits there without having inserted
/// any of the others: two who did so in two orders would wait for each other.
async fn inserts_the_first_first(
    db: &Db,
    insert: &str,
    names: &[String],
    act: impl Future<Output = ()> + Send + 'static,
) {
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    // Before the deadlock would be found, and the act done again.
    tx.batch_execute("set local lock_timeout = '300ms'").await.unwrap();
    tx.execute(insert, &[&names[0]]).await.unwrap();
    let acting = tokio::spawn(act);
    db.until_waiting(1).await;
    for name in &names[1..] {
        tx.execute(insert, &[name]).await.expect("it has been inserted before the first one");
    }
    tx.rollback().await.unwrap();
    acting.await.unwrap();
}

#[tokio::test]
async fn keys_and_sets_are_inserted_in_their_order_whatever_the_order_of_the_request() {
    let db = Db::new().await;
    let store = db.store();
    let names: Vec<String> = (b'a'..=b'p').map(|c| char::from(c).to_string()).collect();
    let backwards: Vec<String> = names.iter().rev().cloned().collect();

    let lane = "insert into fleet.lanes (capabilities) values (array['agent:' || $1::text])";
    let sets: Vec<Vec<String>> = backwards.iter().map(|n| vec![format!("agent:{n}")]).collect();
    let own = store.clone();
    inserts_the_first_first(&db, lane, &names, async move {
        own.intern_lanes(sets.iter().map(Vec::as_slice)).await.unwrap();
    })
    .await;

    let key = "insert into fleet.tasks (key) values ($1)";
    let keyed = |name: String| NewTask { key: Some(name), ..task(&[], Mode::Undecided) };
    let tasks: Vec<NewTask> = backwards.into_iter().map(keyed).collect();
    Box::pin(inserts_the_first_first(&db, key, &names, async move {
        assert!(matches!(create_all(&store, tasks).await, Created::New(_)));
    }))
    .await;
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 16);
    assert_eq!(db.count("select count(*) from fleet.lanes").await, 17);
    db.check_history().await;
}

/// They touch a session, the agent and another session; so they wait for each other before they have any of these.
#[tokio::test]
async fn who_registers_and_who_deletes_an_agent_take_turns_before_they_lock_anything() {
    let db = Db::new().await;
    let store = db.store();
    agent(&store, "a", &[], 1).await;
    let turn = sql("lock_agent_id");
    for deletes in [false, true] {
        let mut other = db.connect().await;
        let tx = other.transaction().await.unwrap();
        tx.query(turn, &[&"a"]).await.unwrap();
        let own = store.clone();
        let acting = tokio::spawn(async move {
            if deletes {
                own.delete_agent("a").await.unwrap().unwrap();
            } else {
                agent(&own, "a", &[], 1).await;
            }
        });
        db.until_waiting(1).await;
        for table in ["sessions", "agents"] {
            let lock = format!("select from fleet.{table} for update nowait");
            tx.batch_execute(&lock).await.unwrap();
        }
        tx.rollback().await.unwrap();
        acting.await.unwrap();
    }
}
