//! What is left over on a host when nobody could end it in time is found by the probe, and only that.

use serde_json::json;

use crate::support::{
    db::Db,
    eventually,
    host::{SshHost, is_alive, until_gone},
    node::Node,
};

const TTL: &str = "[lease]\nreplica_ttl = \"3s\"\n";
const CLI: &str = "cat >/dev/null; echo $$ >~/leader; trap '' TERM; until [ -e ~/go ]; do sleep 0.1; done; echo went";

#[tokio::test]
async fn a_run_called_off_while_its_replica_is_dead_is_ended_by_the_next_probe() {
    let host = SshHost::start(CLI).await;
    let db = Db::new().await;
    let mut a = host.serve(&db, "a", TTL).await;
    // It reaches no host.
    let b = Node::start(&db, "b", TTL).await;
    b.until_host("h1", "online").await;
    let id = b.create("called off", &["agent:code"]).await;
    let leader = host.pid("leader").await;
    b.until(&id, "running").await;
    a.program.signal("KILL");
    a.program.ended().await;
    let task = b.must(&format!("/api/v1/tasks/{id}/cancel"), json!({})).await;
    assert!(is_alive(leader));
    let c = host.node(&db, "c", TTL).await;
    until_gone(leader).await;
    let run = host.run_dir(&task["task_id"], 1);
    let mark = run.with_file_name("live").join(run.file_name().unwrap());
    eventually("the run is a tombstone", async || {
        (run.join("tombstone").exists() && !mark.exists()).then_some(())
    })
    .await;
    let task = c.task(&id).await;
    assert_eq!((&task["status"], &task["lease"]), (&json!("cancelled"), &json!(1)));
    db.check_history().await;
    for node in [b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn another_fleets_run_and_one_that_was_taken_over_are_left_alone() {
    let host = SshHost::start(CLI).await;
    let (db, other) = (Db::new().await, Db::new().await);
    other.execute("update fleet.identity set fleet_id = gen_random_uuid()").await;
    let a = host.node(&db, "a", TTL).await;
    let id = a.create("lives", &["agent:code"]).await;
    let leader = host.pid("leader").await;
    let task = a.until(&id, "running").await;
    // The other fleet knows a task of that id, whose run has ended.
    let task_id = task["task_id"].as_str().unwrap();
    other
        .execute(&format!(
            "insert into fleet.tasks (task_id, key, status, lease) values ('{task_id}', 'k', 'cancelled', 1);
             insert into fleet.runs (task_id, run_lease, attempt, host_agent_id, command, prompt_via, output, work_dir,
                                     timeout_secs, state)
             values ('{task_id}', 1, 1, 1, '{{}}', 'stdin', 'raw', '/', 1, 'ended')"
        ))
        .await;
    let stranger = host.node(&other, "s", "").await;
    a.replica.shutdown.trigger();
    let b = host.node(&db, "b", TTL).await;
    eventually("the run is taken over", async || (b.task(&id).await["lease"] == 2).then_some(()))
        .await;
    // Both have looked since.
    for (node, whose) in [(&b, "b"), (&stranger, "s")] {
        let now = jiff::Timestamp::now().to_string();
        eventually(&format!("{whose} has looked"), async || {
            let host = node.until_host("h1", "online").await;
            (host["checked_at"].as_str()? > now.as_str()).then_some(())
        })
        .await;
    }
    assert!(is_alive(leader));
    host.touch("go");
    let task = b.until(&id, "completed").await;
    assert_eq!((&task["attempt"], host.starts()), (&json!(1), 1));
    db.check_history().await;
    for node in [b, stranger] {
        node.stop().await;
    }
}
