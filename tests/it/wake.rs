//! Wake-ups: hints over memory and NOTIFY, faster than the poll that is the truth behind them.

use std::{sync::Arc, time::Duration};

use agent_fleet::{
    model::ExecutionMode,
    store::{NewRequest, NewTask, ReadyPlace},
};
use serde_json::{Value, json};

use crate::{
    dispatch::{QUICK, dir, local},
    support::{
        db::Db,
        eventually,
        fleet::{create, operator, task},
        node::Node,
    },
};

/// As often a poll may come between an act and its answer by chance, of this replica or of another test's.
const ROUNDS: usize = 8;

/// Long-polls until it is answered; the poll has looked once in vain when this returns.
async fn waits(node: &Arc<Node>, agent: &'static str) -> tokio::task::JoinHandle<Option<Value>> {
    let node = Arc::clone(node);
    let poll = tokio::spawn(async move { node.dequeue(agent, 20).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!poll.is_finished());
    poll
}

/// How often a replica of this process has polled the database for the agents that wait.
async fn polls(node: &Node) -> u64 {
    let page = reqwest::get(format!("{}/metrics", node.url)).await.unwrap().text().await.unwrap();
    let name = "agent_fleet_statement_seconds_count{statement=\"find_ready_below\"} ";
    let count = page.lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0, |count| count.parse().unwrap())
}

/// Sees that an agent, `a`, that waits on this replica hears of an act without a poll: after what `prepare` makes of the
/// world there is nothing for it, after the act there is.
async fn wakes(
    what: &'static str,
    missed: &mut Vec<&'static str>,
    node: &Arc<Node>,
    prepare: &impl AsyncFn() -> Value,
    act: impl AsyncFn(Value),
) {
    for _ in 0..ROUNDS {
        let prepared = prepare().await;
        let poll = waits(node, "a").await;
        let before = polls(node).await;
        act(prepared).await;
        let task = poll.await.unwrap().unwrap_or_else(|| panic!("{what}: nothing came"));
        let polled = polls(node).await - before;
        assert_eq!(node.complete(&task, "a").await.0.as_u16(), 200, "{what}");
        if polled == 0 {
            return;
        }
    }
    missed.push(what);
}

/// Commits of new tasks wait for this advisory lock, as they do for a disk.
const COMMIT: i64 = 7;

/// A connection that holds commits of new tasks back until it is dropped.
async fn hold_commits(db: &Db) -> tokio_postgres::Client {
    db.execute(&format!(
        "create function fleet.wait() returns trigger language plpgsql as
           $$ begin perform pg_advisory_xact_lock_shared({COMMIT}); return null; end $$;
         create constraint trigger wait after insert on fleet.tasks deferrable initially deferred
           for each row execute function fleet.wait()"
    ))
    .await;
    let gate = db.connect().await;
    gate.batch_execute(&format!("select pg_advisory_lock({COMMIT})")).await.unwrap();
    gate
}

#[tokio::test]
async fn of_a_single_task_the_others_are_told_while_it_is_committed() {
    let db = Db::new().await;
    let store = db.store();
    let request = |key: Option<&str>, count| NewRequest {
        tasks: vec![
            NewTask { key: key.map(str::to_owned), ..task(&[], ExecutionMode::Undecided) };
            count
        ],
        idempotency_key: None,
        actor: operator(),
    };
    let (told, mut places) = tokio::sync::mpsc::unbounded_channel();
    let tell = move |place: ReadyPlace| told.send(place).is_ok();
    let gate = hold_commits(&db).await;
    let creating = {
        let (store, tell) = (store.clone(), tell.clone());
        let request = request(None, 1);
        tokio::spawn(async move { store.create_tasks(&request, &tell).await.unwrap() })
    };
    let place = places.recv().await.unwrap();
    // Who hears it waits for the commit.
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.await_creations(&[place]).await.unwrap() })
    };
    db.until_waiting(2).await;
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 0);
    drop(gate);
    waiting.await.unwrap();
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 1);
    let made = creating.await.unwrap();
    assert!(made.told && made.places == [place]);
    store.await_creations(&[place, ReadyPlace { seq: 99, ..place }]).await.unwrap();
    // Said by its caller: what may have to be left out, what is not alone, and what may not be said now.
    let made = store.create_tasks(&request(Some("key"), 1), &tell).await.unwrap();
    assert!(!made.told && made.places.len() == 1);
    let made = store.create_tasks(&request(None, 2), &tell).await.unwrap();
    assert!(!made.told && made.places.len() == 2);
    let made = store.create_tasks(&request(None, 1), &|_| false).await.unwrap();
    assert!(!made.told && made.places.len() == 1);
    assert!(places.try_recv().is_err());
}

/// A transaction has room for some thousands of locks.
#[tokio::test]
async fn plain_sql_makes_tasks_without_a_lock_each() {
    let db = Db::new().await;
    let locks =
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    let held = async |tells: &str| {
        let set = format!("begin; set local agent_fleet.tells = '{tells}'");
        db.execute(&format!("{set}; select fleet.enqueue('one'), fleet.enqueue('two')")).await;
        let held = db.count(locks).await;
        db.execute("rollback").await;
        held
    };
    assert_eq!(held("").await, 0);
    assert_eq!(held("itself").await, 2, "a replica's are held");
}

#[tokio::test]
async fn who_is_told_of_a_task_before_its_commit_looks_after_it() {
    let db = Db::new().await;
    let one = Arc::new(Node::start(&db, "r1", "").await);
    let two = Arc::new(Node::start(&db, "r2", "").await);
    eventually("it listens", async || one.replica.listening().ok()).await;
    let mut heard = db.store().listen().await.unwrap();
    one.register("a", &[], 1).await;
    let poll = waits(&one, "a").await;
    let gate = hold_commits(&db).await;
    let creating = {
        let two = Arc::clone(&two);
        tokio::spawn(async move { two.create("t", &[]).await })
    };
    while !heard.next().await.unwrap().contains("soon:") {}
    // The creation, and the replica that heard of it.
    db.until_waiting(2).await;
    assert!(!poll.is_finished());
    drop(gate);
    let task = poll.await.unwrap().unwrap();
    assert_eq!(task["task_id"], json!(creating.await.unwrap()));
    assert_eq!(one.complete(&task, "a").await.0.as_u16(), 200);
    db.check_history().await;
    for node in [one, two] {
        Arc::into_inner(node).unwrap().stop().await;
    }
}

#[tokio::test]
async fn every_commit_that_makes_something_ready_wakes_who_waits_on_another_replica() {
    let db = Db::new().await;
    let one = Arc::new(Node::start(&db, "r1", "").await);
    let two = Arc::new(Node::start(&db, "r2", "").await);
    for node in [&one, &two] {
        eventually("it listens", async || node.replica.listening().ok()).await;
    }
    let sets: Vec<String> = (0..ROUNDS).map(|n| format!("agent:new{n}")).collect();
    let mut capabilities: Vec<&str> = sets.iter().map(String::as_str).collect();
    capabilities.push("agent:x");
    one.register("a", &capabilities, 1).await;
    two.register("b", &[], 1).await;
    let nothing = async || Value::Null;
    let ready = async || json!(two.create("t", &["agent:x"]).await);
    let post = async |task: &Value, act: &str, body: Value| {
        two.must(&format!("/api/v1/tasks/{}/{act}", task.as_str().unwrap()), body).await;
    };
    // What is due is looked at when something is scheduled; else only every 2 s.
    let look_at_what_is_due = async || {
        two.must("/api/v1/tasks", json!({"title": "later", "run_at": "2999-01-01T00:00:00Z"}))
            .await;
    };

    let mut missed = Vec::new();
    wakes("a creation", &mut missed, &one, &nothing, async |_| {
        ready().await;
    })
    .await;
    // The agent's one slot is taken, and something else is ready.
    let full = async || {
        ready().await;
        let held = one.dequeue("a", 0).await.unwrap();
        ready().await;
        held
    };
    wakes("a receipt frees a slot", &mut missed, &one, &full, async |held| {
        assert_eq!(two.complete(&held, "a").await.0.as_u16(), 200);
    })
    .await;
    wakes("a cancellation frees a slot", &mut missed, &one, &full, async |held| {
        post(&held["task_id"], "cancel", json!({})).await;
    })
    .await;
    let foreign = async || json!(two.create("t", &["agent:other"]).await);
    wakes("a pin", &mut missed, &one, &foreign, async |task| {
        post(&task, "assign", json!({"agent_id": "a", "force": true})).await;
    })
    .await;
    let cancelled = async || {
        let task = ready().await;
        post(&task, "cancel", json!({})).await;
        task
    };
    wakes("a retry", &mut missed, &one, &cancelled, async |task| {
        post(&task, "retry", json!({})).await
    })
    .await;
    let set = json!({"capabilities": ["agent:x"]});
    let paused = async || {
        two.must("/api/v1/queues/pause", set.clone()).await;
        ready().await
    };
    wakes("a resumed queue", &mut missed, &one, &paused, async |_| {
        two.must("/api/v1/queues/resume", set.clone()).await;
    })
    .await;
    let held_by_b = async || {
        two.register("b", &[], 1).await;
        two.create("t", &[]).await;
        two.dequeue("b", 0).await.unwrap()
    };
    wakes("a release", &mut missed, &one, &held_by_b, async |held| {
        let body = json!({"agent_id": "b", "lease": held["lease"]});
        post(&held["task_id"], "release", body).await;
    })
    .await;
    wakes("an agent that leaves", &mut missed, &one, &held_by_b, async |_| {
        two.must("/api/v1/agents/deregister", json!({"agent_id": "b"})).await;
    })
    .await;
    two.register("b", &[], 1).await;
    let pinned = async || {
        let task = ready().await;
        post(&task, "assign", json!({"agent_id": "b", "force": true})).await;
        task
    };
    wakes("a pin that runs out", &mut missed, &one, &pinned, async |_| {
        db.execute("update fleet.tasks set pinned_until = now() where pinned_until is not null")
            .await;
        look_at_what_is_due().await;
    })
    .await;
    let scheduled = async || {
        let body = json!({"title": "t", "labels": ["agent:x"], "run_at": "2999-01-01T00:00:00Z"});
        two.must("/api/v1/tasks", body).await["task_id"].clone()
    };
    wakes("a task that is due", &mut missed, &one, &scheduled, async |task| {
        let id = task.as_str().unwrap();
        db.execute(&format!("update fleet.tasks set run_at = now() where task_id = '{id}'")).await;
        look_at_what_is_due().await;
    })
    .await;
    let lanes = "select count(*) from fleet.lanes where capabilities[1] like 'agent:new%'";
    wakes("a set that gets its lane", &mut missed, &one, &nothing, async |_| {
        let set = format!("agent:new{}", db.count(lanes).await);
        db.execute(&format!("select fleet.enqueue('t', labels => '{{{set}}}')")).await;
        look_at_what_is_due().await;
    })
    .await;
    let locks = db.connect().await;
    let locked = async || {
        ready().await;
        locks.batch_execute("begin; select from fleet.tasks for update").await.unwrap();
        Value::Null
    };
    wakes("a ready task that is unlocked as it was", &mut missed, &one, &locked, async |_| {
        locks.batch_execute("rollback").await.unwrap();
    })
    .await;
    assert_eq!(missed, [""; 0], "nobody was woken; the poll found it, {ROUNDS} times each");
    db.check_history().await;
    for node in [one, two] {
        Arc::into_inner(node).unwrap().stop().await;
    }
}

/// The dispatcher looks by itself once in an hour here.
#[tokio::test]
async fn every_commit_that_makes_something_ready_wakes_the_dispatcher_of_another_replica() {
    let (db, dir) = (Db::new().await, dir());
    let toml = format!("[dispatch]\ninterval = \"1h\"\n{}", local(&dir, QUICK, 1, &["agent:x"]));
    let one = Node::start(&db, "r1", &toml).await;
    let two = Node::start(&db, "r2", "").await;
    one.until_host("h", "online").await;
    eventually("it listens", async || one.replica.listening().ok()).await;
    let id = two.create("t", &["agent:x"]).await;
    one.until(&id, "completed").await;

    let queue = json!({"capabilities": ["agent:x"]});
    two.must("/api/v1/queues/pause", queue.clone()).await;
    let id = two.create("t", &["agent:x"]).await;
    two.must("/api/v1/queues/resume", queue).await;
    one.until(&id, "completed").await;

    two.must("/api/v1/hosts/h/drain", json!({})).await;
    let id = two.create("t", &["agent:x"]).await;
    two.must("/api/v1/hosts/h/resume", json!({})).await;
    one.until(&id, "completed").await;

    let id = two.create("t", &["agent:other"]).await;
    let path = format!("/api/v1/tasks/{id}/assign");
    two.must(&path, json!({"agent_id": "h", "force": true})).await;
    one.until(&id, "completed").await;
    db.check_history().await;
    for node in [one, two] {
        node.stop().await;
    }
}

/// No hint at all: neither of the task nor of its lane.
#[tokio::test]
async fn the_poll_finds_what_nobody_told_of_also_in_a_new_lane() {
    let db = Db::new().await;
    let node = Arc::new(Node::start(&db, "r", "").await);
    node.register("a", &["agent:new"], 1).await;
    let poll = waits(&node, "a").await;
    let id = create(&db.store(), task(&["agent:new"], ExecutionMode::Undecided), 1).await[0];
    let found = poll.await.unwrap().expect("the poll looks every 2 s");
    assert_eq!(found["task_id"], id.to_string());
    db.check_history().await;
    Arc::into_inner(node).unwrap().stop().await;
}

#[tokio::test]
async fn after_a_lost_listener_it_listens_again_and_scans() {
    let db = Db::new().await;
    let node = Arc::new(Node::start(&db, "r", "").await);
    eventually("it listens", async || node.replica.listening().ok()).await;
    node.register("a", &[], 1).await;
    let ended = db
        .count(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where datname = current_database() and query = 'listen fleet_wake'",
        )
        .await;
    assert_eq!(ended, 1);
    let poll = waits(&node, "a").await;
    node.create("t", &[]).await;
    let task = poll.await.unwrap().unwrap();
    node.complete(&task, "a").await;
    eventually("it listens again", async || node.replica.listening().ok()).await;
    db.check_history().await;
    Arc::into_inner(node).unwrap().stop().await;
}

#[tokio::test]
async fn waiting_agents_cost_no_query_each() {
    let db = Db::new().await;
    let node = Arc::new(Node::start(&db, "r", "").await);
    let mut places = Vec::new();
    // A connection that goes idle tells its counts up to 10 s later; one that ends tells them at once.
    let registrar = db.store();
    for n in 0..200 {
        let session = crate::support::fleet::agent(&registrar, &format!("a{n}"), &[], 1).await;
        places.push(agent_fleet::coordinator::Matchmaker::wait(
            &node.replica,
            agent_fleet::store::Waiter::one(session),
            false,
        ));
    }
    registrar.close();
    eventually("the registrar has gone", async || {
        let left = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'agent-fleet/test'";
        (db.count(left).await == 0).then_some(())
    })
    .await;
    // A rate, so it needs a time: one poll for all of them every 2 s, and the loops; a look at each agent in every poll would be 200.
    // The replica's own connections tell of its first looks as late, hence the first such time is not the only one.
    let commits = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
    let mut before = db.count(commits).await;
    eventually("200 waiting agents cause less than 150 transactions in 5 s", async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = db.count(commits).await;
        let few = after - before < 150;
        before = after;
        few.then_some(())
    })
    .await;
    drop(places);
    Arc::into_inner(node).unwrap().stop().await;
}
