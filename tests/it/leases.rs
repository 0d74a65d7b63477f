//! How leases end: fenced, refunded, waited for.

use std::time::Duration;

use agent_fleet::{
    model::{Actor, ExecutionMode as Mode, Lease, SessionId, Status},
    store::{Appended, EndLease, Ended, HeldLease, NewRun, Outcome, Refusal},
};
use uuid::Uuid;

use crate::support::{
    db::Db,
    fleet::{agent, complete, create, end, host, next, operator, pull, push, replica, task},
};

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

/// A run of this command that is about to start.
fn run(command: &[String]) -> NewRun<'_> {
    NewRun { command, prompt_via: "stdin", output: "raw", work_dir: "/nowhere", timeout_secs: 9 }
}

#[tokio::test]
async fn a_run_is_recorded_only_under_its_lease_and_before_it_begins() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::SshCli), 3).await;
    let (boot, slots) = replica(&store, "r", &[host("h", &[], 3)]).await;
    let held = push(&store, boot, &[slots["h"]]).await;
    let command = ["true".to_owned()];
    let run = run(&command);
    let foreign = HeldLease { holder: SessionId(Uuid::now_v7()), ..held[0] };
    for wrong in [foreign, HeldLease { lease: next(held[0].lease), ..held[0] }] {
        assert!(!store.insert_run(&wrong, &run).await.unwrap());
    }
    let actor = Actor::Replica("r".into());
    store.start_task(&held[1], &actor, serde_json::json!({}), None).await.unwrap().unwrap();
    store.cancel_task(held[2].task_id, &operator(), None).await.unwrap().unwrap();
    for over in [&held[1], &held[2]] {
        assert!(!store.insert_run(over, &run).await.unwrap());
    }
    assert_eq!(db.count("select count(*) from fleet.runs").await, 0);
    for what in ["now", "by an earlier try that was not heard of"] {
        assert!(store.insert_run(&held[0], &run).await.unwrap(), "{what}");
    }
    assert_eq!(db.count("select count(*) from fleet.runs").await, 1);
    db.check_history().await;
}

/// What a statement that has waited for a row sees of others is as old as it is.
#[tokio::test]
async fn output_that_comes_while_its_run_is_called_off_does_not_revive_it() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::SshCli), 1).await;
    let (boot, slots) = replica(&store, "r", &[host("h", &[], 1)]).await;
    let held = push(&store, boot, &[slots["h"]]).await[0];
    let command = ["true".to_owned()];
    let run = run(&command);
    assert!(store.insert_run(&held, &run).await.unwrap());
    assert!(store.append_run_output(&held, held.lease, 0, b"one\n").await.unwrap());
    let other = db.connect().await;
    let cancel = format!("begin; select fleet.cancel('{}')", held.task_id);
    other.batch_execute(&cancel).await.unwrap();
    let (stored, ()) =
        tokio::join!(store.append_run_output(&held, held.lease, 4, b"two\n"), async {
            db.until_waiting(1).await;
            other.batch_execute("commit").await.unwrap();
        });
    assert!(!stored.unwrap());
    assert_eq!(db.count("select count(*) from fleet.runs where state = 'ended'").await, 1);
    assert_eq!(db.count("select count(*) from fleet.task_logs").await, 1);
    db.check_history().await;
}
