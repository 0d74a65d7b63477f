//! The two claims, by statement: exact limits, locked rows, order, fencing.

use std::{sync::Arc, time::Duration};

use agent_fleet::{
    model::{ExecutionMode as Mode, Lease, Priority, Status, TaskId},
    store::{Ended, Outcome, Store, Waiter},
};
use tokio::sync::Barrier;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::support::{
    db::{Db, sql},
    fleet::{HOUR, agent, complete, create, ending, host, operator, pull, push, replica, task},
};

#[tokio::test]
async fn lanes_that_are_forgotten_while_they_are_read_are_looked_for_again() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 1).await;
    let session = agent(&store, "a", &[], 1).await;
    let waiter = [Waiter::one(session)];

    let asking = {
        let (store, waiter) = (store.clone(), waiter.clone());
        Box::pin(async move { store.claim_for_agents(&waiter, true).await.unwrap() })
    };
    let claims = forget_lanes_under(&db, &store, asking).await;
    assert!(
        !claims.claimed.is_empty() || claims.shortfall,
        "it must not say that there is nothing"
    );
    let claims = store.claim_for_agents(&waiter, true).await.unwrap();
    assert_eq!(claims.claimed.len(), 1);
}

#[tokio::test]
async fn who_completes_gets_the_next_task_also_when_the_lanes_are_forgotten_while_they_are_read() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 2).await;
    let session = agent(&store, "a", &[], 1).await;
    let held = pull(&store, session).await.unwrap();
    store.ready_somewhere();
    let completing = {
        let store = store.clone();
        async move {
            let ends = [ending(held, Outcome::Completed)];
            store.work(&ends, Duration::ZERO, &[Waiter::one(session)]).await.unwrap()
        }
    };
    let worked = Box::pin(forget_lanes_under(&db, &store, completing)).await;
    assert_eq!(worked.ended, [Ended::Now(Status::Completed)]);
    assert_eq!(worked.claims.claimed.len(), 1);
}

/// What comes of this, when a hint has the lanes forgotten while it reads them.
async fn forget_lanes_under<T: Send + 'static>(
    db: &Db,
    store: &Store,
    reading: impl Future<Output = T> + Send + 'static,
) -> T {
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute("lock table fleet.lanes in access exclusive mode").await.unwrap();
    let reading = tokio::spawn(reading);
    db.until_waiting(1).await;
    store.ready_somewhere();
    tx.rollback().await.unwrap();
    reading.await.unwrap()
}

#[tokio::test]
async fn a_session_that_another_replica_claims_for_is_left_alone_and_then_counted_exactly() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 3).await;
    let session = agent(&store, "a", &[], 1).await;

    // Another replica is in the middle of a claim for the same session.
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    assert_eq!(tx.query(sql("claim_pull_1_lock"), &[&vec![session.0]]).await.unwrap().len(), 1);
    let waiter = [Waiter::one(session)];
    let claims = store.claim_for_agents(&waiter, true).await.unwrap();
    assert!(claims.claimed.is_empty() && claims.ended.is_empty());
    assert!(claims.shortfall, "the one that was skipped is to be looked for again");

    let first = "select task_id, lane_id from fleet.tasks order by seq limit 1";
    let first = tx.query_one(first, &[]).await.unwrap();
    let (first, lane): (Uuid, i64) = (first.get(0), first.get(1));
    let taken = tx
        .query(
            sql("claim_pull_3_take"),
            &[&vec![first], &vec![session.0], &vec!["a"], &vec![Uuid::now_v7()], &vec![lane]],
        )
        .await
        .unwrap();
    let switched: [&(dyn ToSql + Sync); 3] =
        [&vec![Uuid::now_v7()], &vec![session.0], &vec![0_f64]];
    assert_eq!(tx.execute(sql("claim_pull_4_switch"), &switched).await.unwrap(), 1);
    assert_eq!(taken.len(), 1);
    tx.commit().await.unwrap();
    let claims = store.claim_for_agents(&waiter, true).await.unwrap();
    assert!(claims.claimed.is_empty(), "its one slot is taken");
    db.check_history().await;
}

/// Why a claim is two statements: what a statement sees is older than the locks that it gets.
#[tokio::test]
async fn a_count_that_is_older_than_the_lock_would_be_wrong_and_ours_is_younger() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 3).await;
    let session = agent(&store, "a", &[], 2).await;
    // This store is now the one that claims for the session; later claims leave the session's row as it is.
    pull(&store, session).await.unwrap();
    let (mut old, mut young) = (db.connect().await, db.connect().await);

    // One snapshot for lock and count, as one statement would have it.
    let old = old
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .start()
        .await
        .unwrap();
    old.query("select 1 from fleet.tasks limit 1", &[]).await.unwrap();
    let young = young.transaction().await.unwrap();
    young.query("select 1 from fleet.tasks limit 1", &[]).await.unwrap();
    pull(&store, session).await.unwrap();

    let ids = vec![session.0];
    assert_eq!(old.query(sql("claim_pull_1_lock"), &[&ids]).await.unwrap().len(), 1);
    assert_eq!(old.query(sql("claim_pull_2_held"), &[&ids]).await.unwrap().len(), 1);
    old.rollback().await.unwrap();

    assert_eq!(young.query(sql("claim_pull_1_lock"), &[&ids]).await.unwrap().len(), 1);
    assert_eq!(young.query(sql("claim_pull_2_held"), &[&ids]).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_one_task_two_replicas_and_never_two_leases() {
    let db = Db::new().await;
    let stores = [db.store(), db.store()];
    let sessions = [agent(&stores[0], "a", &[], 1).await, agent(&stores[1], "b", &[], 1).await];
    for _ in 0..60 {
        let id = create(&stores[0], task(&[], Mode::Undecided), 1).await[0];
        let barrier = Arc::new(Barrier::new(2));
        let racing = [0, 1].map(|n| {
            let (store, session, barrier) = (stores[n].clone(), sessions[n], Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                pull(&store, session).await
            })
        });
        let mut won = Vec::new();
        for one in racing {
            won.extend(one.await.unwrap());
        }
        assert_eq!(won.len(), 1, "exactly one has it");
        assert_eq!((won[0].task_id, won[0].lease), (id, Lease(1)));
        assert!(matches!(complete(&stores[0], won[0]).await, Ended::Now(Status::Completed)));
    }
    db.check_history().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agent_on_three_replicas_never_holds_more_than_its_slots() {
    let db = Db::new().await;
    let stores = [db.store(), db.store(), db.store()];
    create(&stores[0], task(&[], Mode::Undecided), 60).await;
    let session = agent(&stores[0], "a", &[], 3).await;
    let barrier = Arc::new(Barrier::new(12));
    let polls: Vec<_> = (0..12)
        .map(|n| {
            let (store, barrier) = (stores[n % 3].clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                let mut got = 0;
                for _ in 0..5 {
                    got += usize::from(pull(&store, session).await.is_some());
                }
                got
            })
        })
        .collect();
    let mut got = 0;
    for poll in polls {
        got += poll.await.unwrap();
    }
    // Each may have met the lock of another every time.
    while got < 3 && pull(&stores[0], session).await.is_some() {
        got += 1;
    }
    assert_eq!(got, 3);
    assert!(pull(&stores[1], session).await.is_none());
    assert_eq!(db.count("select count(*) from fleet.tasks where holder is not null").await, 3);
    db.check_history().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_a_host_agent_are_exact_over_three_replicas() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&["agent:code"], Mode::Undecided), 40).await;
    let hosts = [host("h", &["agent:code"], 5)];
    let barrier = Arc::new(Barrier::new(3));
    let mut replicas = Vec::new();
    for name in ["r1", "r2", "r3"] {
        let store = db.store();
        let (session, slots) = replica(&store, name, &hosts).await;
        let (slot, barrier) = (slots["h"], Arc::clone(&barrier));
        replicas.push(tokio::spawn(async move {
            barrier.wait().await;
            let mut got = Vec::new();
            for _ in 0..20 {
                got.extend(push(&store, session, &[slot]).await);
            }
            got
        }));
    }
    let mut got = Vec::new();
    for replica in replicas {
        got.extend(replica.await.unwrap());
    }
    assert_eq!(got.len(), 5);
    // A slot that is free again is taken again, once.
    complete(&store, got[0]).await;
    let (session, slots) = replica(&store, "r1", &hosts).await;
    assert_eq!(push(&store, session, &[slots["h"]]).await.len(), 1);
    assert_eq!(push(&store, session, &[slots["h"]]).await.len(), 0);
    db.check_history().await;
}

#[tokio::test]
async fn a_locked_head_row_starves_no_waiter() {
    let db = Db::new().await;
    let store = db.store();
    let ids = create(&store, task(&["agent:code"], Mode::Undecided), 12).await;
    let session = agent(&store, "a", &["agent:code"], 1).await;
    let (boot, slots) = replica(&store, "r", &[host("h", &["agent:code"], 1)]).await;
    // Somebody holds the first ten rows, for as long as it pleases them.
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.query("select 1 from fleet.tasks order by seq limit 10 for update", &[]).await.unwrap();
    // Who is not prepared for it is told to ask again, and then finds its way.
    let lost = store.claim_for_agents(&[Waiter::one(session)], true).await.unwrap();
    assert!(lost.claimed.is_empty() && lost.shortfall, "{lost:?}");
    let pulled = pull(&store, session).await.expect("the next row is free");
    let pushed = push(&store, boot, &[slots["h"]]).await;
    let mut got = [pulled.task_id, pushed[0].task_id];
    got.sort_by_key(|task| ids.iter().position(|id| id == task));
    assert_eq!(got, ids[10..]);
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn one_agents_pins_hide_no_other_agents_pin() {
    let db = Db::new().await;
    let store = db.store();
    let ids = create(&store, task(&[], Mode::HttpPull), 5).await;
    let (a, b) = (agent(&store, "a", &[], 1).await, agent(&store, "b", &[], 1).await);
    for (n, id) in ids.iter().enumerate() {
        let target = if n == 4 { "b" } else { "a" };
        store.assign_task(*id, target, Mode::HttpPull, HOUR, &operator()).await.unwrap().unwrap();
    }
    pull(&store, a).await.unwrap();
    // a is full now, and waits like anybody.
    let both = [a, b].map(Waiter::one);
    let claims = store.claim_for_agents(&both, true).await.unwrap().claimed;
    assert_eq!(claims.iter().map(|c| (c.0, c.1)).collect::<Vec<_>>(), [(1, ids[4])]);
}

#[tokio::test]
async fn one_hosts_pins_hide_no_other_hosts_pin() {
    let db = Db::new().await;
    let store = db.store();
    let ids = create(&store, task(&[], Mode::SshCli), 400).await;
    let (boot, slots) = replica(&store, "r", &[host("g", &[], 1), host("h", &[], 1)]).await;
    for (n, id) in ids.iter().enumerate() {
        let target = if n == 399 { "h/ok" } else { "g" };
        store.assign_task(*id, target, Mode::SshCli, HOUR, &operator()).await.unwrap().unwrap();
    }
    let slots = [slots["g"], slots["h"]];
    let mut got = push(&store, boot, &slots).await;
    got.sort_by_key(|held| ids.iter().position(|id| *id == held.task_id));
    assert_eq!(got.iter().map(|h| h.task_id).collect::<Vec<_>>(), [ids[0], ids[399]]);
}

#[tokio::test]
async fn higher_priority_first_then_older_and_pins_before_all() {
    let db = Db::new().await;
    let store = db.store();
    let mut wanted = Vec::new();
    for priority in [Priority::Low, Priority::Normal, Priority::Normal, Priority::Urgent] {
        let new = agent_fleet::store::NewTask { priority, ..task(&[], Mode::Undecided) };
        wanted.push(create(&store, new, 1).await[0]);
    }
    let pinned = create(&store, task(&["agent:other"], Mode::Undecided), 1).await[0];
    store.assign_task(pinned, "a", Mode::HttpPull, HOUR, &operator()).await.unwrap().unwrap();
    let session = agent(&store, "a", &[], 9).await;
    let mut got = Vec::new();
    while let Some(held) = pull(&store, session).await {
        got.push(held.task_id);
    }
    assert_eq!(got, [pinned, wanted[3], wanted[1], wanted[2], wanted[0]]);
}

#[tokio::test]
async fn an_array_is_worked_off_in_its_order() {
    let db = Db::new().await;
    let store = db.store();
    let ids = create(&store, task(&[], Mode::Undecided), 20).await;
    let session = agent(&store, "a", &[], 20).await;
    let mut got = Vec::new();
    while let Some(held) = pull(&store, session).await {
        got.push(held.task_id);
    }
    assert_eq!(got, ids);
}

#[tokio::test]
async fn waiters_with_one_set_and_with_others_each_get_a_task_of_their_own() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&["agent:x"], Mode::Undecided), 2).await;
    create(&store, task(&["agent:y"], Mode::Undecided), 1).await;
    let mut waiters = Vec::new();
    for (name, set) in
        [("a", &["agent:x"][..]), ("b", &["agent:x", "agent:y"]), ("c", &["agent:x"]), ("d", &[])]
    {
        let session = agent(&store, name, set, 1).await;
        waiters.push(Waiter::one(session));
    }
    let claims = store.claim_for_agents(&waiters, true).await.unwrap();
    let mut places: Vec<usize> = claims.claimed.iter().map(|c| c.0).collect();
    places.sort_unstable();
    assert!(places.len() >= 2 && !places.contains(&3), "{places:?}");
    let mut tasks: Vec<_> = claims.claimed.iter().map(|c| c.1).collect();
    tasks.sort_unstable();
    tasks.dedup();
    assert_eq!(tasks.len(), places.len(), "no task goes to two");
    // What the first scan left, the next one finds.
    let left: Vec<Waiter> =
        (0..4).filter(|n| !places.contains(n)).map(|n| waiters[n].clone()).collect();
    store.claim_for_agents(&left, true).await.unwrap();
    let waiting = db
        .count(
            "select count(*) from fleet.tasks t join fleet.lanes l using (lane_id)
              where t.status = 'created' and l.capabilities = array['agent:x']",
        )
        .await;
    assert_eq!(waiting, 0);
}

#[tokio::test]
async fn an_ended_or_replaced_session_claims_nothing() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 1).await;
    let old = agent(&store, "a", &[], 1).await;
    let new = agent(&store, "a", &[], 1).await;
    let claims = store.claim_for_agents(&[Waiter::one(old)], true).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.ended), (0, vec![0]));
    db.execute("update fleet.agents set drained_at = now()").await;
    assert!(pull(&store, new).await.is_none(), "a draining agent takes nothing new");
    db.execute("update fleet.agents set drained_at = null").await;
    // Ended, and nobody has registered after it.
    store.end_session(new, "silent").await.unwrap();
    let claims = store.claim_for_agents(&[Waiter::one(new)], true).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.ended), (0, vec![0]));
    let newest = agent(&store, "a", &[], 1).await;
    assert!(pull(&store, newest).await.is_some());
}

#[tokio::test]
async fn hosts_work_off_the_higher_priority_first_and_then_the_order_of_creation() {
    let db = Db::new().await;
    let store = db.store();
    let mut wanted = Vec::new();
    for priority in [Priority::Normal, Priority::High] {
        let new = agent_fleet::store::NewTask { priority, ..task(&[], Mode::SshCli) };
        wanted.insert(0, create(&store, new, 12).await);
    }
    let (boot, slots) = replica(&store, "r", &[host("h", &[], 1)]).await;
    let mut got = Vec::new();
    while let Some(held) = push(&store, boot, &[slots["h"]]).await.first() {
        got.push(held.task_id);
        complete(&store, *held).await;
    }
    assert_eq!(got, wanted.concat());
}

/// What is looked at is another's to take meanwhile.
#[tokio::test]
async fn candidates_are_read_without_locks() {
    let db = Db::new().await;
    let store = db.store();
    let ids = create(&store, task(&["agent:x"], Mode::Undecided), 12).await;
    agent(&store, "a", &["agent:x"], 1).await;
    replica(&store, "r", &[host("h", &["agent:x"], 1)]).await;
    for (id, target, mode) in [(ids[0], "a", Mode::HttpPull), (ids[1], "h", Mode::SshCli)] {
        store.assign_task(id, target, mode, HOUR, &operator()).await.unwrap().unwrap();
    }
    let mut other = db.connect().await;
    let claim = other.transaction().await.unwrap();
    let lane: i64 = db.count("select lane_id from fleet.lanes").await;
    let (sets, seqs) = (serde_json::json!([["agent:x"]]), vec![0_i64]);
    let priority = vec![Priority::Normal.rank()];
    let params: [&(dyn ToSql + Sync); 5] = [&vec![1], &vec![lane], &priority, &seqs, &5_i64];
    let ready = claim.query(sql("claim_pull_2_ready"), &params).await.unwrap();
    let pushed = claim.query(sql("claim_push_2_ready"), &[&sets, &5_i64]).await.unwrap();
    assert_eq!((ready.len(), pushed.len()), (5, 5));
    for (name, target) in [("claim_pull_2_pinned", "a"), ("claim_push_2_pinned", "h")] {
        assert_eq!(claim.query(sql(name), &[&vec![target], &5_i64]).await.unwrap().len(), 1);
    }
    let free = "select count(*) from (select 1 from fleet.tasks for update skip locked) t";
    assert_eq!(db.count(free).await, 12);
    claim.rollback().await.unwrap();
}

#[tokio::test]
async fn a_host_is_given_only_what_is_still_ready_under_the_lock() {
    let db = Db::new().await;
    let store = db.store();
    let (boot, slots) = replica(&store, "r", &[host("h", &[], 9)]).await;
    let session = agent(&store, "a", &[], 9).await;
    create(&store, task(&[], Mode::Undecided), 2).await;
    let pulled = pull(&store, session).await.unwrap();
    let done = pull(&store, session).await.unwrap();
    complete(&store, done).await;
    let free = create(&store, task(&[], Mode::Undecided), 1).await[0];
    // All three were ready when a dispatcher read them.
    let tasks = [pulled.task_id, done.task_id, free].map(|id| id.0).to_vec();
    let hosts = vec![slots["h"].0; 3];
    let lanes = vec![lane_of(&db, free).await; 3];
    let taken = [&tasks as &(dyn ToSql + Sync), &hosts, &boot.0, &"replica:r", &lanes];
    let taken = db.rows(sql("claim_push_3_take"), &taken).await;
    let taken: Vec<Uuid> = taken.iter().map(|row| row.get("task_id")).collect();
    assert_eq!(taken, [free.0]);
    assert!(store.check_lease(pulled.task_id).await.unwrap().unwrap().is_held_by(&pulled));
    assert_eq!(store.get_task(done.task_id).await.unwrap().unwrap().status, Status::Completed);
    db.check_history().await;
}

#[tokio::test]
async fn who_is_left_out_of_a_claim_keeps_nobody_from_a_task() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&["agent:y"], Mode::Undecided), 1).await;
    let x = agent(&store, "x", &["agent:x"], 1).await;
    let y = agent(&store, "y", &["agent:y"], 1).await;
    // Nothing is there for the first, which therefore does not go on to the claim.
    let claims = store.claim_for_agents(&[x, y].map(Waiter::one), true).await.unwrap();
    let places: Vec<usize> = claims.claimed.iter().map(|claimed| claimed.0).collect();
    assert_eq!(places, [1], "{claims:?}");
}

#[tokio::test]
async fn who_is_left_out_of_a_claim_changes_nobodys_capabilities() {
    let db = Db::new().await;
    let store = db.store();
    let full = agent(&store, "full", &["agent:x", "agent:z"], 1).await;
    create(&store, task(&["agent:z"], Mode::Undecided), 1).await;
    assert!(pull(&store, full).await.is_some());
    let x = agent(&store, "x", &["agent:x"], 1).await;
    let w = agent(&store, "w", &["agent:w"], 1).await;
    for label in ["agent:x", "agent:w"] {
        create(&store, task(&[label], Mode::Undecided), 1).await;
    }
    // By the look beforehand the first, which is full, gets the one for `x`, so the second is left out.
    let claims = store.claim_for_agents(&[full, x, w].map(Waiter::one), true).await.unwrap();
    let given: Vec<(usize, &str)> = claims
        .claimed
        .iter()
        .map(|(place, id, _)| (*place, claims.tasks[id].capabilities[0].as_str()))
        .collect();
    assert_eq!(given, [(2, "agent:w")]);
    assert!(claims.shortfall, "there is something for the one that was left out");
}

async fn lane_of(db: &Db, task: TaskId) -> i64 {
    db.rows("select lane_id from fleet.tasks where task_id = $1", &[&task.0]).await[0].get(0)
}

#[tokio::test]
async fn what_has_moved_to_another_lane_since_it_was_read_is_taken_by_nobody_who_read_it() {
    let db = Db::new().await;
    let store = db.store();
    let (boot, slots) = replica(&store, "r", &[host("h", &["agent:x"], 1)]).await;
    let session = agent(&store, "a", &["agent:x"], 1).await;
    let moved = create(&store, task(&["agent:x"], Mode::Undecided), 1).await[0];
    let other = create(&store, task(&["agent:y"], Mode::Undecided), 1).await[0];
    let (tasks, found) = (vec![moved.0], vec![lane_of(&db, moved).await]);
    // Its issue was edited: it requires something else now.
    let edit = format!("update fleet.tasks set lane_id = {}", lane_of(&db, other).await);
    db.execute(&edit).await;
    let (sessions, agents, requests) = (vec![session.0], vec!["a"], vec![Uuid::now_v7()]);
    let pull: [&(dyn ToSql + Sync); 5] = [&tasks, &sessions, &agents, &requests, &found];
    assert!(db.rows(sql("claim_pull_3_take"), &pull).await.is_empty());
    let hosts = vec![slots["h"].0];
    let push: [&(dyn ToSql + Sync); 5] = [&tasks, &hosts, &boot.0, &"replica:r", &found];
    assert!(db.rows(sql("claim_push_3_take"), &push).await.is_empty());

    let found = vec![lane_of(&db, moved).await];
    let pull: [&(dyn ToSql + Sync); 5] = [&tasks, &sessions, &agents, &requests, &found];
    assert_eq!(db.rows(sql("claim_pull_3_take"), &pull).await.len(), 1);
}

#[tokio::test]
async fn who_may_take_less_than_it_asks_for_leaves_the_rest_to_the_next() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 5).await;
    let (a, b) = (agent(&store, "a", &[], 1).await, agent(&store, "b", &[], 1).await);
    let both = [Waiter { max_tasks: 5, ..Waiter::one(a) }, Waiter::one(b)];
    let claims = store.claim_for_agents(&both, true).await.unwrap();
    let served = |place| claims.claimed.iter().any(|claimed| claimed.0 == place);
    assert!(served(0));
    assert!(served(1) || claims.shortfall, "{claims:?}");
}
