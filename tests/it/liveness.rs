//! Who lives: heartbeats, silence, and who may judge it.

use std::time::{Duration, Instant};

use agent_fleet::{
    model::{ExecutionMode as Mode, Lease, SessionId, Status},
    store::{Ended, NewTask, Outcome, Store, Touched, Waiter},
};
use serde_json::json;

use crate::support::{
    db::Db,
    eventually,
    fleet::{
        agent, agent_for, complete, create, end, host, next, operator, pull, push, replica, task,
    },
    node::Node,
    program::Serve,
};

const QUICK: &str =
    "[lease]\nheartbeat_interval = \"1s\"\nheartbeat_misses = 3\nreplica_ttl = \"3s\"\n";
const MINUTE: Duration = Duration::from_secs(60);

/// Makes the past longer: as if so many seconds had gone by for this session since then.
async fn age(db: &Db, session: SessionId, column: &str, secs: u32) {
    db.execute(&format!(
        "update fleet.sessions set {column} = now() - interval '{secs} seconds' where session_id = '{session}'"
    ))
    .await;
}

/// Signs of life of this moment.
fn heard(sessions: &[SessionId]) -> Vec<(SessionId, Instant)> {
    sessions.iter().map(|session| (*session, Instant::now())).collect()
}

async fn judged(store: &Store, judge: SessionId) -> Vec<String> {
    let silent = store.end_silent_sessions(judge, 100).await.unwrap();
    silent.into_iter().map(|s| s.subject).collect()
}

#[tokio::test]
async fn a_silent_agents_task_is_requeued_and_at_last_agent_lost() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", QUICK).await;
    node.register("silent", &[], 1).await;
    node.register("living", &[], 1).await;
    let kept = node.create("kept", &[]).await;
    let held = node.dequeue("living", 5).await.unwrap();
    let task =
        node.must("/api/v1/tasks", json!({"title": "lost", "labels": [], "max_retries": 1})).await;
    let lost = task["task_id"].as_str().unwrap();
    assert_eq!(node.dequeue("silent", 5).await.unwrap()["task_id"], lost);

    // Any call of an agent is a sign of life; here it is a status.
    let beat = async || {
        let body = json!({"agent_id": "living", "lease": held["lease"], "status": "running"});
        node.must(&format!("/api/v1/tasks/{kept}/status"), body).await;
    };
    let task = eventually("it is requeued", async || {
        beat().await;
        let task = node.task(lost).await;
        (task["retry_count"] == 1).then_some(task)
    })
    .await;
    assert_eq!(task["attempt"], 1);
    // The session has ended: register again.
    let (status, reply) =
        node.post("/api/v1/agents/heartbeat", json!({"agent_id": "silent"})).await;
    assert_eq!((status.as_u16(), &reply["code"]), (409, &json!("session_ended")));
    node.register("silent", &[], 1).await;
    let again = node.dequeue("silent", 5).await.unwrap();
    assert_eq!((&again["task_id"], &again["attempt"]), (&json!(lost), &json!(2)));
    eventually("its retries are used up", async || {
        beat().await;
        (node.task(lost).await["status"] == "agent_lost").then_some(())
    })
    .await;
    let (status, _) = node.complete(&again, "silent").await;
    assert_eq!(status.as_u16(), 409, "too late");
    let task = node.task(&kept).await;
    assert_eq!((&task["status"], &task["lease"]), (&json!("running"), &held["lease"]));
    assert_eq!(node.complete(&held, "living").await.0.as_u16(), 200);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn death_is_a_recorded_transition_and_a_heartbeat_matches_only_the_living() {
    let db = Db::new().await;
    let store = db.store();
    let (judge, _) = replica(&store, "r", &[]).await;
    let session = agent_for(&store, "a", &[], 1, MINUTE).await;
    create(&store, task(&[], Mode::Undecided), 1).await;
    let held = pull(&store, session).await.unwrap();
    age(&db, judge, "steady_since", 120).await;
    assert!(judged(&store, judge).await.is_empty(), "it has just been heard of");
    age(&db, session, "last_heartbeat_at", 61).await;
    // A heartbeat that comes in time saves it.
    assert_eq!(store.touch_sessions(&heard(&[session])).await.unwrap().renewed, [session]);
    assert!(judged(&store, judge).await.is_empty());
    age(&db, session, "last_heartbeat_at", 61).await;
    assert_eq!(judged(&store, judge).await, ["a"]);
    assert!(judged(&store, judge).await.is_empty(), "once");
    let touched = store.touch_sessions(&heard(&[session])).await.unwrap();
    assert_eq!(touched, Touched::default(), "register again");
    let lost = store.list_lost_leases(10).await.unwrap();
    assert_eq!(lost, [(held, Some("silent".to_owned()))]);
    assert_eq!(end(&store, held, Outcome::Lost).await, Ended::Now(Status::AgentLost));
    db.check_history().await;
}

#[tokio::test]
async fn a_heartbeat_that_is_under_way_saves_a_session() {
    let db = Db::new().await;
    let store = db.store();
    let (judge, _) = replica(&store, "r", &[]).await;
    age(&db, judge, "steady_since", 120).await;
    let session = agent_for(&store, "a", &[], 1, MINUTE).await;
    age(&db, session, "last_heartbeat_at", 61).await;
    let mut beating = db.connect().await;
    let beat = beating.transaction().await.unwrap();
    let sql = "update fleet.sessions set last_heartbeat_at = now() where session_id = $1";
    assert_eq!(beat.execute(sql, &[&session.0]).await.unwrap(), 1);
    // Who waited for it here would wait for ever.
    assert!(judged(&store, judge).await.is_empty());
    beat.commit().await.unwrap();
    assert!(judged(&store, judge).await.is_empty());
    let live = "select count(*) from fleet.sessions where subject = 'a' and ended_at is null";
    assert_eq!(db.count(live).await, 1);
}

#[tokio::test]
async fn a_session_that_is_locked_keeps_no_other_from_its_sign_of_life_and_has_its_own_later() {
    let db = Db::new().await;
    let store = db.store();
    let busy = agent_for(&store, "busy", &[], 1, MINUTE).await;
    let other = agent_for(&store, "other", &[], 1, MINUTE).await;
    let mut claiming = db.connect().await;
    let claiming = claiming.transaction().await.unwrap();
    let lock = "select from fleet.sessions where session_id = $1 for no key update";
    claiming.execute(lock, &[&busy.0]).await.unwrap();
    let touched = store.touch_sessions(&heard(&[busy, other])).await.unwrap();
    assert_eq!(touched, Touched { renewed: vec![other], busy: vec![busy] });
    claiming.rollback().await.unwrap();
    assert_eq!(store.touch_sessions(&heard(&touched.busy)).await.unwrap().renewed, [busy]);
}

/// Its session is locked for claims again and again, so that signs of life may find it locked each time.
#[tokio::test]
async fn an_agent_that_works_all_the_time_is_not_silent() {
    let db = Db::new().await;
    let store = db.store();
    let (judge, _) = replica(&store, "r", &[]).await;
    age(&db, judge, "steady_since", 120).await;
    let session = agent_for(&store, "a", &[], 1, MINUTE).await;
    create(&store, task(&[], Mode::Undecided), 2).await;
    let held = pull(&store, session).await.unwrap();
    complete(&store, held).await;
    age(&db, session, "last_heartbeat_at", 59).await;
    pull(&store, session).await.unwrap();
    let age = "select count(*) from fleet.sessions
                where subject = 'a' and last_heartbeat_at > now() - interval '30 seconds'";
    assert_eq!(db.count(age).await, 1);
    assert!(judged(&store, judge).await.is_empty());
}

#[tokio::test]
async fn a_replica_learns_where_it_stands_among_those_that_live() {
    let db = Db::new().await;
    let store = db.store();
    let (first, _) = replica(&store, "first", &[]).await;
    let (second, _) = replica(&store, "second", &[]).await;
    let stands = async |session| {
        let standing = store.beat_replica(session).await.unwrap().unwrap().standing;
        (standing.place, standing.of)
    };
    assert_eq!((stands(first).await, stands(second).await), ((0, 2), (1, 2)));
    store.end_session(first, "stopped").await.unwrap();
    assert_eq!(stands(second).await, (0, 1));
}

#[tokio::test]
async fn nobody_judges_before_it_can_see() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent_for(&store, "a", &[], 1, MINUTE).await;
    let (other, _) = replica(&store, "other", &[]).await;
    age(&db, session, "last_heartbeat_at", 3600).await;
    age(&db, other, "last_heartbeat_at", 7200).await;
    // A night without coordinators is over: this one has just started.
    let (judge, _) = replica(&store, "r", &[]).await;
    assert!(judged(&store, judge).await.is_empty());
    // It has seen for a minute, which is enough for agents, but not for a replica with an hour to be silent.
    age(&db, judge, "steady_since", 61).await;
    assert_eq!(judged(&store, judge).await, ["a"]);
    age(&db, judge, "steady_since", 3601).await;
    assert_eq!(judged(&store, judge).await, ["other"]);
}

#[tokio::test]
async fn a_replica_with_a_gap_in_its_own_beat_judges_nobody() {
    let db = Db::new().await;
    let store = db.store();
    let (judge, _) = replica(&store, "r", &[]).await;
    let session = agent_for(&store, "a", &[], 1, MINUTE).await;
    age(&db, session, "last_heartbeat_at", 3600).await;
    age(&db, judge, "steady_since", 7200).await;
    age(&db, judge, "last_heartbeat_at", 1801).await;
    assert!(judged(&store, judge).await.is_empty(), "its own last beat is old");
    let beaten = async || store.beat_replica(judge).await.unwrap().unwrap();
    assert!(!beaten().await.is_steady);
    assert!(judged(&store, judge).await.is_empty(), "after a gap it has to see anew");
    age(&db, judge, "steady_since", 61).await;
    assert!(!beaten().await.is_steady, "its own ttl is an hour");
    assert_eq!(judged(&store, judge).await, ["a"], "a beat without a gap begins nothing anew");
    age(&db, judge, "steady_since", 3601).await;
    assert!(beaten().await.is_steady);
}

#[tokio::test]
async fn no_living_agents_task_is_requeued_after_a_time_without_coordinators() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", QUICK).await;
    node.register("a", &[], 1).await;
    let id = node.create("long work", &[]).await;
    let held = node.dequeue("a", 5).await.unwrap();
    node.stop().await;
    // Twice the window, and more, in the database's eyes.
    db.execute(
        "update fleet.sessions set last_heartbeat_at = last_heartbeat_at - interval '1 hour',
                                   steady_since = steady_since - interval '1 hour'",
    )
    .await;
    let node = Node::start(&db, "r", QUICK).await;
    let started = std::time::Instant::now();
    // The agent finds its coordinator again within its own interval; the reaper has had its rounds by then.
    eventually("the reaper has looked", async || {
        (started.elapsed() > Duration::from_millis(2500)).then_some(())
    })
    .await;
    let (status, _) = node.post("/api/v1/agents/heartbeat", json!({"agent_id": "a"})).await;
    assert_eq!(status.as_u16(), 200);
    eventually("the replica may judge, and has", async || {
        let (status, _) = node.post("/api/v1/agents/heartbeat", json!({"agent_id": "a"})).await;
        assert_eq!(status.as_u16(), 200);
        (started.elapsed() > Duration::from_millis(5000)).then_some(())
    })
    .await;
    assert_eq!(node.task(&id).await["lease"], held["lease"]);
    assert_eq!(node.complete(&held, "a").await.0.as_u16(), 200);
    assert_eq!(db.count("select count(*) from fleet.task_events where type = 'lost'").await, 0);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_boot_ends_earlier_boots_of_its_id() {
    let db = Db::new().await;
    let store = db.store();
    let (first, _) = replica(&store, "r", &[]).await;
    let (second, _) = replica(&store, "r", &[]).await;
    assert!(store.beat_replica(first).await.unwrap().is_none(), "it has to begin another");
    assert!(store.beat_replica(second).await.unwrap().is_some());
    let row =
        db.rows("select end_reason from fleet.sessions where ended_at is not null", &[]).await;
    assert_eq!(row[0].get::<_, String>(0), "booted again");
}

#[tokio::test]
async fn of_two_boots_of_one_id_at_one_moment_the_later_one_stays() {
    let db = Db::new().await;
    let store = db.store();
    // Another process of this id is booting.
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute(
        "insert into fleet.sessions (kind, subject, ttl) values ('replica', 'r', interval '1 hour')",
    )
    .await
    .unwrap();
    let booting = tokio::spawn(async move { store.begin_replica("r", "here", "m", MINUTE).await });
    eventually("the second waits for the first", async || {
        let waiting = db
            .count("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
            .await;
        (waiting == 1).then_some(())
    })
    .await;
    tx.commit().await.unwrap();
    let session = booting.await.unwrap().unwrap();
    let live = db.rows("select session_id from fleet.sessions where ended_at is null", &[]).await;
    assert_eq!(live.iter().map(|r| SessionId(r.get(0))).collect::<Vec<_>>(), [session]);
}

#[tokio::test]
async fn a_silent_replica_is_ended_by_others_and_its_runs_are_taken_over() {
    let db = Db::new().await;
    let store = db.store();
    let hosts = [host("h", &[], 1)];
    let (silent, slots) = replica(&store, "silent", &hosts).await;
    let (judge, _) = replica(&store, "r", &hosts).await;
    create(&store, task(&[], Mode::Undecided), 1).await;
    let held = push(&store, silent, &[slots["h"]]).await[0];
    let taken = async || store.take_over_runs(&[slots["h"]], judge, &operator()).await.unwrap();
    assert!(taken().await.is_empty(), "its replica lives");
    age(&db, silent, "last_heartbeat_at", 3601).await;
    age(&db, judge, "steady_since", 3601).await;
    assert_eq!(judged(&store, judge).await, ["silent"]);
    assert!(push(&store, silent, &[slots["h"]]).await.is_empty(), "the dead claim nothing");
    let taken = taken().await;
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].held.lease, taken[0].held.holder), (next(held.lease), judge));
    let now = store.get_task(held.task_id).await.unwrap().unwrap();
    assert_eq!((now.attempt, now.lease), (1, next(held.lease)), "the same attempt");
    assert!(matches!(end(&store, held, Outcome::Failed).await, Ended::Not(_)), "fenced off");
    db.check_history().await;
}

#[tokio::test]
async fn a_replica_taken_for_dead_joins_anew_and_one_that_stops_says_so() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", QUICK).await;
    let first = node.replica.session();
    node.replica.store.end_session(first, "silent").await.unwrap();
    let second = eventually("it has joined anew", async || {
        let now = node.replica.session();
        (now != first).then_some(now)
    })
    .await;
    node.stop().await;
    let row = db
        .client
        .query_one("select end_reason from fleet.sessions where session_id = $1", &[&second.0])
        .await
        .unwrap();
    assert_eq!(row.get::<_, Option<String>>(0).as_deref(), Some("stopped"));
}

#[tokio::test]
async fn past_its_deadline_a_task_times_out_is_retried_and_then_fails() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 1).await;
    let body = json!({"title": "slow", "timeout_secs": 1, "max_retries": 1});
    let id = node.must("/api/v1/tasks", body).await["task_id"].as_str().unwrap().to_owned();
    let first = node.dequeue("a", 5).await.unwrap();
    let second = eventually("it is handed out again", async || node.dequeue("a", 5).await).await;
    assert_eq!((&second["attempt"], &second["lease"]), (&json!(2), &json!(2)));
    assert_eq!(node.complete(&first, "a").await.0.as_u16(), 409);
    let task = node.until(&id, "failed").await;
    assert_eq!((&task["error"], &task["retry_count"]), (&json!("its deadline passed"), &json!(1)));
    assert_eq!(
        db.count("select count(*) from fleet.task_events where type = 'timed_out'").await,
        2
    );
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_deadline_on_a_host_is_the_followers_to_judge_first() {
    let db = Db::new().await;
    let store = db.store();
    let (boot, slots) = replica(&store, "r", &[host("h", &[], 1)]).await;
    let new = NewTask { timeout_secs: 10, ..task(&[], Mode::Undecided) };
    create(&store, new, 1).await;
    let held = push(&store, boot, &[slots["h"]]).await[0];
    assert_eq!(held.lease, Lease(1));
    for (late, expired) in [(59, 0), (61, 1)] {
        db.execute(&format!(
            "update fleet.tasks set deadline_at = now() - interval '{late} seconds'"
        ))
        .await;
        assert_eq!(store.list_expired_leases(MINUTE, 10).await.unwrap().len(), expired);
    }
}

/// Somebody cancels more tasks by hand than are ended in one batch, and leaves the transaction open.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_somebody_has_locked_keep_no_others_lease_from_ending() {
    for is_lost in [false, true] {
        let db = Db::new().await;
        let store = db.store();
        let session = agent(&store, "a", &[], 250).await;
        create(&store, task(&[], Mode::Undecided), 250).await;
        let waiter = Waiter { max_tasks: 250, ..Waiter::one(session) };
        let claims = store.claim_for_agents(&[waiter], true).await.unwrap();
        assert_eq!(claims.claimed.len(), 250);
        // Those first in the order in which leases are ended.
        let first = "select task_id from fleet.tasks order by task_id limit 240";
        if is_lost {
            store.end_session(session, "silent").await.unwrap();
            db.execute("update fleet.sessions set ended_at = now() - interval '1 minute'").await;
        } else {
            db.execute(&format!(
                "update fleet.tasks set deadline_at = now() - interval '1 hour';
                 update fleet.tasks set deadline_at = now() - interval '2 hours' where task_id in ({first})"
            ))
            .await;
        }
        let mut other = db.connect().await;
        let tx = other.transaction().await.unwrap();
        tx.batch_execute(&format!("{first} for update")).await.unwrap();
        let mut serve = Serve::start(db.url(), "r", "[auth]\nmode = \"open\"\n");
        let ended = "select count(*) from fleet.tasks where holder is null";
        eventually("the others are ended", async || (db.count(ended).await == 10).then_some(()))
            .await;
        serve.program.until_said("somebody keeps this task locked").await;
        tx.rollback().await.unwrap();
        eventually("all are ended", async || (db.count(ended).await == 250).then_some(())).await;
        db.check_history().await;
    }
}
