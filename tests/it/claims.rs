//! The two claims, by statement: exact limits, locked rows, order, fencing.

use std::{sync::Arc, time::Duration};

use agent_fleet::{
    model::{Actor, ExecutionMode as Mode, Lease, Priority, SessionId, Status},
    store::{Appended, EndLease, Ended, HeldLease, Outcome, Refusal, STATEMENTS, Waiter},
};
use tokio::sync::Barrier;
use uuid::Uuid;

use crate::support::{
    db::Db,
    fleet::{HOUR, agent, complete, create, end, host, next, operator, pull, push, replica, task},
};

fn sql(name: &str) -> &'static str {
    STATEMENTS.iter().find(|s| s.name == name).unwrap().text
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
    let waiter = [Waiter { session, capabilities: None }];
    let claims = store.claim_for_agents(&waiter).await.unwrap();
    assert!(claims.claimed.is_empty() && claims.ended.is_empty());
    assert!(claims.shortfall, "the one that was skipped is to be looked for again");

    let first: Uuid = tx
        .query_one("select task_id from fleet.tasks order by seq limit 1", &[])
        .await
        .unwrap()
        .get(0);
    let taken = tx
        .query(sql("claim_pull_3_take"), &[&vec![first], &vec![session.0], &vec!["a"]])
        .await
        .unwrap();
    assert_eq!(taken.len(), 1);
    tx.commit().await.unwrap();
    let claims = store.claim_for_agents(&waiter).await.unwrap();
    assert!(claims.claimed.is_empty(), "its one slot is taken");
    db.check_history().await;
}

/// Why a claim is two statements: what a statement sees is older than the locks that it gets.
#[tokio::test]
async fn a_count_that_is_older_than_the_lock_would_be_wrong_and_ours_is_younger() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 2).await;
    let session = agent(&store, "a", &[], 1).await;
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
    assert!(old.query(sql("claim_pull_2_count"), &[&ids]).await.unwrap().is_empty());
    old.rollback().await.unwrap();

    assert_eq!(young.query(sql("claim_pull_1_lock"), &[&ids]).await.unwrap().len(), 1);
    let counted = young.query_one(sql("claim_pull_2_count"), &[&ids]).await.unwrap();
    assert_eq!(counted.get::<_, i64>("held"), 1);
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
    assert_eq!(got, 3);
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
    let both = [a, b].map(|session| Waiter { session, capabilities: None });
    let claims = store.claim_for_agents(&both).await.unwrap().claimed;
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
        waiters.push(Waiter { session, capabilities: None });
    }
    let claims = store.claim_for_agents(&waiters).await.unwrap();
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
    store.claim_for_agents(&left).await.unwrap();
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
    let claims =
        store.claim_for_agents(&[Waiter { session: old, capabilities: None }]).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.ended), (0, vec![0]));
    db.execute("update fleet.agents set drained_at = now()").await;
    assert!(pull(&store, new).await.is_none(), "a draining agent takes nothing new");
    db.execute("update fleet.agents set drained_at = null").await;
    assert!(pull(&store, new).await.is_some());
}

#[tokio::test]
async fn an_old_lease_and_an_old_session_change_nothing() {
    let db = Db::new().await;
    let store = db.store();
    let id = create(&store, task(&[], Mode::Undecided), 1).await[0];
    let session = agent(&store, "a", &[], 1).await;
    let old = pull(&store, session).await.unwrap();
    end(&store, old, Outcome::Undone).await;
    let held = pull(&store, session).await.unwrap();
    assert_eq!(held.lease, next(old.lease));
    let before = db.rows("select to_jsonb(t) from fleet.tasks t", &[]).await;

    let foreign = HeldLease { holder: SessionId(Uuid::now_v7()), ..held };
    let actor = || Actor::Agent("a".into());
    for wrong in [old, foreign, HeldLease { lease: next(held.lease), ..held }] {
        let lost = Refusal::LeaseLost;
        let started =
            store.start_task(&wrong, &actor(), serde_json::json!({}), Some(9)).await.unwrap();
        assert_eq!(started, Err(lost));
        assert_eq!(complete(&store, wrong).await, Ended::Not(lost));
        for outcome in [Outcome::Released, Outcome::Lost, Outcome::TimedOut, Outcome::Undone] {
            assert_eq!(end(&store, wrong, outcome).await, Ended::Not(lost));
        }
        let appended = store.append_log(&wrong, 0, b"x").await.unwrap();
        assert_eq!(appended, Appended::Refused(lost));
    }
    let after = db.rows("select to_jsonb(t) from fleet.tasks t", &[]).await;
    let json = |rows: &[tokio_postgres::Row]| rows[0].get::<_, serde_json::Value>(0);
    assert_eq!(json(&before), json(&after));
    assert_eq!(db.count("select count(*) from fleet.receipts").await, 0);
    assert_eq!(db.count("select count(*) from fleet.task_logs").await, 0);

    // The receipt that is stored is recognised whatever became of the task.
    assert!(matches!(complete(&store, held).await, Ended::Now(Status::Completed)));
    assert_eq!(complete(&store, held).await, Ended::Before);
    assert_eq!(store.check_lease(id).await.unwrap().unwrap().holder, None);
    db.check_history().await;
}

#[tokio::test]
async fn a_claim_names_the_version_that_it_handed_out() {
    let db = Db::new().await;
    let store = db.store();
    let id = create(&store, task(&[], Mode::Undecided), 1).await[0];
    let session = agent(&store, "a", &[], 1).await;
    let held = pull(&store, session).await.unwrap();
    db.execute(
        "insert into fleet.task_specs (task_id, version, title) select task_id, 2, 'newer' from fleet.tasks;
         update fleet.tasks set spec_version = 2",
    )
    .await;
    assert_eq!(store.get_task(id).await.unwrap().unwrap().title, "a task");
    end(&store, held, Outcome::Undone).await;
    assert_eq!(store.get_task(id).await.unwrap().unwrap().title, "newer");
}

#[tokio::test]
async fn at_most_five_refunds_and_then_giving_back_counts_as_losing() {
    let db = Db::new().await;
    let store = db.store();
    let id = create(&store, task(&[], Mode::Undecided), 1).await[0];
    let session = agent(&store, "a", &[], 1).await;
    for round in 1..=6 {
        db.execute("update fleet.tasks set run_at = now() where status = 'scheduled'").await;
        store.promote_due_tasks(&operator()).await.unwrap();
        let held = pull(&store, session).await.unwrap();
        assert_eq!(held.lease, Lease(round));
        let status = match end(&store, held, Outcome::Released).await {
            Ended::Now(status) => status,
            other => panic!("{other:?}"),
        };
        let now = store.get_task(id).await.unwrap().unwrap();
        let (wanted, attempt) = match round {
            1 => (Status::Created, 0),
            2..=5 => (Status::Scheduled, 0),
            _ => (Status::AgentLost, 1),
        };
        assert_eq!((status, now.status, now.attempt), (wanted, wanted, attempt), "round {round}");
    }
    db.check_history().await;
}

#[tokio::test]
async fn backoff_is_counted_by_the_databases_clock_and_doubles() {
    let db = Db::new().await;
    let store = db.store();
    let new = agent_fleet::store::NewTask { max_retries: 3, ..task(&[], Mode::Undecided) };
    create(&store, new, 1).await;
    let session = agent(&store, "a", &[], 1).await;
    for wanted in [10.0, 20.0, 40.0] {
        let held = pull(&store, session).await.unwrap();
        let end = EndLease {
            held,
            outcome: Outcome::Failed,
            reason: None,
            wait_secs: None,
            receipt: None,
            actor: Actor::Agent("a".into()),
        };
        store.end_leases(&[end], Duration::from_secs(10)).await.unwrap();
        let row = db
            .rows(
                "select extract(epoch from t.run_at - e.at)::float8 from fleet.tasks t
                   join fleet.task_events e using (task_id) where e.type = 'failed' order by e.event_id desc limit 1",
                &[],
            )
            .await;
        let waits: f64 = row[0].get(0);
        assert!(
            (wanted..=wanted * 1.2).contains(&waits),
            "{waits} s instead of {wanted} s and up to 20 %"
        );
        assert_eq!(store.promote_due_tasks(&operator()).await.unwrap(), 0, "not before its time");
        db.execute("update fleet.tasks set run_at = now()").await;
        assert_eq!(store.promote_due_tasks(&operator()).await.unwrap(), 1);
    }
    db.check_history().await;
}
