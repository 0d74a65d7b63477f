//! The claim in one statement, right after a hint: it takes what the claim in full would, and nothing where it cannot know.

use std::sync::Arc;

use agent_fleet::{
    model::{CapabilitySet, ExecutionMode as Mode, Lease, SessionId},
    store::{Store, Waiter},
};
use serde_json::json;
use tokio_postgres::{Client, types::ToSql};
use uuid::Uuid;

use crate::support::{
    db::{Db, sql},
    eventually,
    fleet::{agent, complete, create, hinted, pull, task},
    node::Node,
};

const AT_ONCE: &str = "claim_pull_at_once";

/// An agent of whom the store knows what it holds: nothing.
async fn known(store: &Store, id: &str) -> SessionId {
    let session = agent(store, id, &[], 1).await;
    create(store, task(&[], Mode::Undecided), 1).await;
    complete(store, pull(store, session).await.unwrap()).await;
    session
}

/// How many agents were locked by a claim in one statement: no other claim locks them.
pub(crate) async fn served(db: &Db) -> i64 {
    db.count("select count(*) from fleet.agents where xmax::text <> '0'").await
}

/// What the statement takes for agent `a`, by one who is or is not the last that claimed for it.
async fn takes(client: &Client, text: &str, session: SessionId, claimer: Uuid) -> usize {
    let (lanes, priorities, lows) = (vec![1_i64; 4], vec![3_i16, 2, 1, 0], vec![0_i64; 4]);
    let params: [&(dyn ToSql + Sync); 7] =
        [&lanes, &priorities, &lows, &session.0, &"a", &Uuid::now_v7(), &claimer];
    let rows = client.query(text, &params).await.unwrap();
    rows.iter().filter(|row| row.get::<_, Option<&str>>("agent_id").is_some()).count()
}

/// A claim in one statement, but that it waits for an advisory lock before it locks: what it sees is older then.
pub(crate) fn late(name: &str) -> String {
    let text = sql(name).replace(
        "and a.drained_at is null",
        "and a.drained_at is null and pg_advisory_xact_lock(7) is not null",
    );
    assert_ne!(text, sql(name));
    text
}

/// Who was the last to claim for a session.
pub(crate) async fn claimer(db: &Db, session: SessionId) -> Uuid {
    let sql = "select claimer from fleet.sessions where session_id = $1";
    db.rows(sql, &[&session.0]).await[0].get(0)
}

#[tokio::test]
async fn it_takes_the_first_and_tells_whether_there_is_more() {
    let db = Db::new().await;
    let store = db.store();
    let [one, two, three] = ["a", "b", "c"].map(|id| known(&store, id));
    let (one, two, three) = (one.await, two.await, three.await);
    let tasks = hinted(&store, vec![task(&[], Mode::Undecided); 2]).await;
    let claim = async |session| store.claim_at_once(&Waiter::one(session)).await.unwrap();
    let mut claims = claim(one).await;
    assert_eq!(served(&db).await, 1);
    assert_eq!(claims.claimed, [(0, tasks[0], Lease(1))]);
    assert!(!claims.shortfall);
    let (stored, shown) = (store.get_task(tasks[0]).await.unwrap(), claims.tasks.remove(&tasks[0]));
    assert_eq!(json!(stored), json!(shown));
    assert!(shown.unwrap().lease_expires_at.is_some());
    let set = CapabilitySet::default();
    assert!(store.may_have_ready(&set), "there is the second");
    // Who holds all that it may is served by the claim in full, which says so.
    assert_eq!(claim(one).await.barred, [0]);
    assert_eq!(claim(two).await.claimed, [(0, tasks[1], Lease(1))]);
    assert!(!store.may_have_ready(&set), "that was all");
    let claims = claim(three).await;
    assert!(claims.claimed.is_empty() && !claims.shortfall);
    db.check_history().await;
}

#[tokio::test]
async fn what_somebody_else_is_about_to_take_it_leaves_and_says_so() {
    let db = Db::new().await;
    let store = db.store();
    let session = known(&store, "a").await;
    let tasks = hinted(&store, vec![task(&[], Mode::Undecided); 1]).await;
    let other = db.connect().await;
    other.batch_execute("begin; select from fleet.tasks for update").await.unwrap();
    let claims = store.claim_at_once(&Waiter::one(session)).await.unwrap();
    assert!(claims.claimed.is_empty() && claims.shortfall);
    other.batch_execute("rollback").await.unwrap();
    let claims = store.claim_at_once(&Waiter::one(session)).await.unwrap();
    assert_eq!(claims.claimed[0].1, tasks[0]);
    assert_eq!(served(&db).await, 1);
}

#[tokio::test]
async fn it_takes_nothing_for_whom_it_may_not() {
    let db = Db::new().await;
    let store = db.store();
    let session = known(&store, "a").await;
    hinted(&store, vec![task(&[], Mode::Undecided); 2]).await;
    let claimer = claimer(&db, session).await;
    let other = db.connect().await;
    for (act, taken) in [
        ("select", 1),
        ("update fleet.sessions set claimer = gen_random_uuid()", 0),
        ("update fleet.sessions set claimer = null", 0),
        ("update fleet.sessions set ended_at = now()", 0),
        ("update fleet.agents set session_id = gen_random_uuid()", 0),
        ("update fleet.agents set drained_at = now()", 0),
        ("update fleet.lanes set paused_at = now()", 0),
        ("update fleet.tasks set execution_mode = 'ssh_cli'", 0),
        (
            "update fleet.tasks set status = 'assigned', execution_mode = 'http_pull', pinned_to = 'a'
              where seq = (select max(seq) from fleet.tasks)",
            0,
        ),
        (
            "update fleet.tasks set status = 'assigned', execution_mode = 'http_pull', pinned_to = 'b'
              where seq = (select max(seq) from fleet.tasks)",
            1,
        ),
    ] {
        other.batch_execute(&format!("begin; {act}")).await.unwrap();
        assert_eq!(takes(&other, sql(AT_ONCE), session, claimer).await, taken, "{act}");
        other.batch_execute("rollback").await.unwrap();
    }
    // Locked by somebody else.
    let holder = db.connect().await;
    for (lock, taken) in [
        ("select from fleet.sessions for no key update", 0),
        ("select from fleet.agents for no key update", 0),
        ("select from fleet.tasks for update", 0),
        ("select", 1),
    ] {
        holder.batch_execute(&format!("begin; {lock}")).await.unwrap();
        other.batch_execute("begin").await.unwrap();
        assert_eq!(takes(&other, sql(AT_ONCE), session, claimer).await, taken, "{lock}");
        other.batch_execute("rollback").await.unwrap();
        holder.batch_execute("rollback").await.unwrap();
    }
}

/// Its snapshot is older than its locks, unlike that of the claim in full.
#[tokio::test]
async fn under_its_locks_it_looks_again_whether_it_may() {
    let db = Db::new().await;
    let (store, other_replica) = (db.store(), db.store());
    let session = known(&store, "a").await;
    hinted(&store, vec![task(&[], Mode::Undecided); 3]).await;
    create(&store, task(&["agent:other"], Mode::Undecided), 1).await;
    let claimer = claimer(&db, session).await;
    let gate = db.connect().await;
    for act in ["edit", "drain", "claim"] {
        gate.batch_execute("select pg_advisory_lock(7)").await.unwrap();
        let claim = db.connect().await;
        let claiming =
            tokio::spawn(async move { takes(&claim, &late(AT_ONCE), session, claimer).await });
        db.until_waiting(1).await;
        if act == "edit" {
            let edit = "update fleet.tasks t
                           set lane_id = (select max(lane_id) from fleet.lanes where capabilities <> '{}')
                         where t.seq = (select min(seq) from fleet.tasks where status = 'created')";
            db.execute(edit).await;
        } else if act == "drain" {
            assert!(store.set_agent_drained("a", true).await.unwrap());
        } else {
            assert!(pull(&other_replica, session).await.is_some());
        }
        gate.batch_execute("select pg_advisory_unlock(7)").await.unwrap();
        assert_eq!(claiming.await.unwrap(), 0, "{act}");
        assert!(store.set_agent_drained("a", false).await.unwrap());
    }
    db.check_history().await;
}

#[tokio::test]
async fn who_waits_on_another_replica_is_served_by_it() {
    let db = Db::new().await;
    let one = Arc::new(Node::start(&db, "r1", "").await);
    let two = Node::start(&db, "r2", "").await;
    eventually("it listens", async || one.replica.listening().ok()).await;
    one.register("a", &[], 1).await;
    two.create("t", &[]).await;
    let first = one.dequeue("a", 20).await.unwrap();
    assert_eq!(one.complete(&first, "a").await.0.as_u16(), 200);
    assert_eq!(served(&db).await, 0);
    // A poll may come first by chance.
    eventually("served by one statement", async || {
        let waiting = Arc::clone(&one);
        let poll = tokio::spawn(async move { waiting.dequeue("a", 20).await });
        eventually("it waits", async || (one.replica.matchmaker.waiting() == 1).then_some(()))
            .await;
        two.create("t", &[]).await;
        let task = poll.await.unwrap().unwrap();
        assert_eq!(one.complete(&task, "a").await.0.as_u16(), 200);
        (served(&db).await == 1).then_some(())
    })
    .await;
    db.check_history().await;
    Arc::into_inner(one).unwrap().stop().await;
    two.stop().await;
}
