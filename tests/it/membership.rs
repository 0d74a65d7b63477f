//! A replica and what it holds: what is in its name and in nobody's hands, and who bears its name.

use std::{path::Path, sync::Arc};

use agent_fleet::{
    config,
    execution::{ExecError, Executor, LocalExecutor, Output, Script},
};
use futures_util::future::BoxFuture;
use serde_json::json;

use crate::{
    dispatch::{dir, local},
    support::{db::Db, eventually, node::Node},
};

const QUICK: &str = "[lease]\nreplica_ttl = \"1500ms\"\n";

#[tokio::test]
async fn a_takeover_whose_commit_was_not_heard_of_is_followed_on() {
    let (db, dir) = (Db::new().await, dir());
    let go = dir.path().join("go");
    let script = format!(
        "cat >/dev/null; echo one; while [ ! -e {} ]; do sleep 0.05; done; echo two",
        go.display()
    );
    let toml = format!("{QUICK}{}", local(&dir, &script, 1, &[]));
    let a = Node::start(&db, "a", &toml).await;
    let id = a.create("t", &[]).await;
    a.until(&id, "running").await;
    let b = Node::start(&db, "b", &toml).await;
    b.until_host("h", "online").await;
    // Nobody beats for it any more, nor follows its run; it did not take its leave.
    a.replica.shutdown.trigger();
    let taken = format!(
        "update fleet.tasks set lease = lease + 1, holder = '{}' where task_id = '{id}'",
        b.replica.session()
    );
    db.execute(&taken).await;
    std::fs::write(&go, "").unwrap();
    let task = b.until(&id, "completed").await;
    assert_eq!((&task["attempt"], &task["lease"]), (&json!(1), &json!(2)), "{task}");
    let (_, page) = b.get(&format!("/api/v1/tasks/{id}/logs")).await;
    let text: String =
        page["items"].as_array().unwrap().iter().map(|i| i["data"].as_str().unwrap()).collect();
    assert_eq!(text, "one\ntwo\n");
    db.check_history().await;
    b.stop().await;
}

#[tokio::test]
async fn a_claim_whose_commit_was_not_heard_of_is_undone_and_costs_no_attempt() {
    let (db, dir) = (Db::new().await, dir());
    let toml = format!("{QUICK}{}", local(&dir, "true", 1, &["agent:code"]));
    let node = Node::start(&db, "r", &toml).await;
    node.until_host("h", "online").await;
    // Its dispatcher does not take this one by itself.
    let id = node.create("t", &["agent:other"]).await;
    db.execute(&format!(
        "with claimed as (
           update fleet.tasks
              set status = 'assigned', execution_mode = 'ssh_cli', lease = lease + 1, attempt = attempt + 1,
                  claimed_version = spec_version, holder = '{}', host_agent_id = (select host_agent_id from fleet.host_agents), assigned_host = 'h/ok',
                  assigned_at = now(), deadline_at = now() + interval '1 hour'
            where task_id = '{id}' returning task_id, lease, attempt)
         insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt)
         select task_id, 'claimed', 'created', 'assigned', 'replica:r', lease, attempt from claimed",
        node.replica.session()
    ))
    .await;
    let task = node.until(&id, "created").await;
    assert_eq!((&task["attempt"], &task["lease"]), (&json!(0), &json!(1)), "{task}");
    assert_eq!(task["events"].as_array().unwrap().last().unwrap()["type"], "undone");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn of_two_processes_with_one_id_the_earlier_one_stops() {
    let db = Db::new().await;
    let first = Node::start(&db, "r", QUICK).await;
    let second = Node::start(&db, "r", QUICK).await;
    let session = second.replica.session();
    eventually("the first gives way", async || first.replica.shutdown.is_triggered().then_some(()))
        .await;
    first.stop().await;
    // They did not end each other in turn.
    assert_eq!(second.replica.session(), session);
    assert!(!second.replica.shutdown.is_triggered());
    assert_eq!(db.count("select count(*) from fleet.sessions").await, 2);
    assert_eq!(db.count("select count(*) from fleet.sessions where ended_at is null").await, 1);
    second.stop().await;
}

#[tokio::test]
async fn heartbeats_of_agents_that_have_to_wait_do_not_delay_the_replicas_own() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", QUICK).await;
    node.register("a", &[], 1).await;
    // What a replica leaves behind that stands still in the middle of a transaction.
    let other = db.connect().await;
    other
        .batch_execute("begin; select from fleet.sessions where subject = 'a' for update")
        .await
        .unwrap();
    let beat = async {
        node.must("/api/v1/agents/heartbeat", json!({"agent_id": "a", "running": []})).await
    };
    let meanwhile = async {
        db.until_waiting(1).await;
        let sql = "select steady_since::text, now()::text from fleet.sessions where subject = 'r'";
        let row = db.rows(sql, &[]).await.remove(0);
        let (steady, since): (String, String) = (row.get(0), row.get(1));
        // Longer than what counts as a gap.
        eventually("the replica's own goes on", async || {
            let sql = "select last_heartbeat_at > $1::text::timestamptz + interval '1 s' from fleet.sessions where subject = 'r'";
            db.rows(sql, &[&since]).await[0].get::<_, bool>(0).then_some(())
        })
        .await;
        let sql =
            "select steady_since = $1::text::timestamptz from fleet.sessions where subject = 'r'";
        assert!(db.rows(sql, &[&steady]).await[0].get::<_, bool>(0));
        other.batch_execute("rollback").await.unwrap();
    };
    tokio::join!(beat, meanwhile);
    node.stop().await;
}

/// Connections that cannot be closed: a script on them hangs.
#[derive(Debug)]
struct Hung(LocalExecutor);

impl Executor for Hung {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        self.0.exec(script)
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_host_that_hangs_keeps_no_replica_from_taking_its_leave() {
    let (db, dir) = (Db::new().await, dir());
    let make =
        |_: &config::Host, _: &Path| Ok(Arc::new(Hung(LocalExecutor::new())) as Arc<dyn Executor>);
    let node = Node::start_with(&db, "r", &local(&dir, "true", 1, &[]), &make).await;
    node.stop().await;
    let sql = "select count(*) from fleet.sessions where end_reason = 'stopped'";
    assert_eq!(db.count(sql).await, 1);
}
