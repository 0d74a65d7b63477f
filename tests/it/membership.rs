//! A replica and what it holds: what is in its name and in nobody's hands, and who bears its name.

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
