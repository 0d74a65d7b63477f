//! Assign: pinned to one, taken by that one, or free again.

use agent_fleet::{
    model::{ExecutionMode as Mode, Status},
    store::{Ended, Outcome},
};
use serde_json::json;

use crate::{
    dispatch::{QUICK, dir, local},
    support::{
        db::Db,
        eventually,
        faults::Faults,
        fleet::{HOUR, agent, create, end, host, operator, pull, push, replica, task},
        node::Node,
    },
};

#[tokio::test]
async fn assigned_to_an_agent_that_one_gets_it_and_no_other() {
    let (db, dir) = (Db::new().await, dir());
    // A host that could take it, too.
    let node = Node::start(&db, "r", &local(&dir, QUICK, 9, &["agent:code"])).await;
    node.until_host("h", "online").await;
    node.register("a", &["agent:code"], 1).await;
    node.register("b", &["agent:code"], 9).await;
    let body = json!({"title": "t", "labels": ["agent:code"], "execution_mode": "http_pull"});
    let id = node.must("/api/v1/tasks", body).await["task_id"].as_str().unwrap().to_owned();
    let task = node.must(&format!("/api/v1/tasks/{id}/assign"), json!({"agent_id": "a"})).await;
    assert_eq!((&task["status"], &task["pinned_to"]), (&json!("assigned"), &json!("a")));
    assert_eq!(task["lease"], 0, "pinned, not leased");
    assert!(node.dequeue("b", 1).await.is_none(), "another agent never gets a pinned task");
    let task = node.dequeue("a", 0).await.unwrap();
    assert_eq!((&task["task_id"], &task["lease"]), (&json!(id), &json!(1)));
    assert_eq!(node.complete(&task, "a").await.1["status"], "completed");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn assigned_to_a_host_or_to_one_cli_of_it_that_one_runs_it() {
    let (db, dir, faults) = (Db::new().await, dir(), Faults::default());
    faults.set_down(true);
    let toml = local(&dir, QUICK, 9, &["agent:code"])
        + "[dispatch]\ninterval = \"200ms\"\nundecided_grace = \"1h\"\n";
    let node = Node::start_with(&db, "r", &toml, &faults.make()).await;
    node.register("a", &["agent:code"], 9).await;
    let mut ids = Vec::new();
    for target in ["h", "h/ok"] {
        let id = node.create("t", &["agent:code"]).await;
        // An offline target is allowed.
        let path = format!("/api/v1/tasks/{id}/assign");
        let task = node.must(&path, json!({"agent_id": target})).await;
        assert_eq!(
            (&task["execution_mode"], &task["pinned_to"]),
            (&json!("ssh_cli"), &json!(target))
        );
        ids.push(id);
    }
    assert!(node.dequeue("a", 1).await.is_none(), "an agent never gets a host's task");
    faults.set_down(false);
    for id in ids {
        let task = node.until(&id, "completed").await;
        assert_eq!((&task["assigned_host"], &task["pinned_to"]), (&json!("h/ok"), &json!(null)));
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_pin_that_expires_frees_the_task_in_the_mode_it_was_created_with() {
    let db = Db::new().await;
    let store = db.store();
    let (boot, slots) = replica(&store, "r", &[host("h", &[], 9)]).await;
    let session = agent(&store, "a", &[], 9).await;
    for created in [Mode::Undecided, Mode::SshCli, Mode::HttpPull] {
        let id = create(&store, task(&[], created), 1).await[0];
        let (target, mode) =
            if created == Mode::SshCli { ("a", Mode::HttpPull) } else { ("h", Mode::SshCli) };
        store.assign_task(id, target, mode, HOUR, &operator()).await.unwrap().unwrap();
        assert_eq!(store.expire_pins(&operator()).await.unwrap(), 0, "not before its time");
        db.execute("update fleet.tasks set pinned_until = now() where pinned_to is not null").await;
        assert_eq!(store.expire_pins(&operator()).await.unwrap(), 1);
        let now = store.get_task(id).await.unwrap().unwrap();
        assert_eq!(
            (now.status, now.execution_mode, now.pinned_to),
            (Status::Created, created, None)
        );
        // Free for whom its mode allows.
        let held = match created {
            Mode::SshCli => push(&store, boot, &[slots["h"]]).await[0],
            Mode::Undecided | Mode::HttpPull => pull(&store, session).await.unwrap(),
        };
        assert_eq!(held.task_id, id);
    }
    db.check_history().await;
}

#[tokio::test]
async fn a_pin_to_a_host_that_never_comes_back_expires_and_an_agent_pulls_the_task() {
    let (db, dir, faults) = (Db::new().await, dir(), Faults::default());
    faults.set_down(true);
    let toml = local(&dir, QUICK, 1, &[]) + "[lease]\nassign_reservation = \"1s\"\n";
    let node = Node::start_with(&db, "r", &toml, &faults.make()).await;
    node.register("a", &[], 1).await;
    let id = node.create("t", &[]).await;
    node.must(&format!("/api/v1/tasks/{id}/assign"), json!({"agent_id": "h"})).await;
    let task = eventually("an agent has it", async || node.dequeue("a", 2).await).await;
    assert_eq!((&task["task_id"], &task["execution_mode"]), (&json!(id), &json!("http_pull")));
    assert_eq!(node.complete(&task, "a").await.1["status"], "completed");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_pin_on_a_lease_counts_for_nothing_and_an_undone_claim_keeps_its_pin() {
    let db = Db::new().await;
    let store = db.store();
    let (a, b) = (agent(&store, "a", &[], 1).await, agent(&store, "b", &[], 1).await);
    let id = create(&store, task(&["agent:none"], Mode::Undecided), 1).await[0];
    let pin = async |target: &str| {
        store.assign_task(id, target, Mode::HttpPull, HOUR, &operator()).await.unwrap()
    };
    pin("a").await.unwrap();
    pin("b").await.unwrap();
    assert!(pull(&store, a).await.is_none(), "the later pin counts");
    let held = pull(&store, b).await.expect("a pin is exempt from capabilities");
    assert!(pin("a").await.is_err(), "it is leased");
    assert!(pull(&store, a).await.is_none());
    db.execute("update fleet.tasks set pinned_until = now()").await;
    assert_eq!(store.expire_pins(&operator()).await.unwrap(), 0, "a lease outlives its pin");
    assert_eq!(end(&store, held, Outcome::Undone).await, Ended::Now(Status::Assigned));
    assert!(pull(&store, a).await.is_none());
    let held = pull(&store, b).await.unwrap();
    assert_eq!(end(&store, held, Outcome::Released).await, Ended::Now(Status::Created));
    let now = store.get_task(id).await.unwrap().unwrap();
    assert_eq!(
        (now.execution_mode, now.pinned_to),
        (Mode::Undecided, None),
        "a pin is for one claim"
    );
    db.check_history().await;
}
