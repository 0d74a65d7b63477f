//! Phase 2: what no known host could ever serve is left to pull, after the grace and not before.

use agent_fleet::{
    model::{ExecutionMode as Mode, TaskId},
    store::{HostListing, HostProbe, Store},
};

use crate::support::{
    db::Db,
    eventually,
    fleet::{HOUR, MACHINE, agent, create, host, operator, pull, push, replica, task},
    node::Node,
};

/// Decides with a grace of an hour, which tasks have waited out only when made to look older.
async fn decide(store: &Store) -> i64 {
    store.decide_pull(HOUR, &operator()).await.unwrap()
}

async fn wait_out_the_grace(db: &Db) {
    db.execute("update fleet.tasks set ready_at = now() - interval '61 minutes'").await;
}

async fn mode(store: &Store, id: TaskId) -> Mode {
    store.get_task(id).await.unwrap().unwrap().execution_mode
}

#[tokio::test]
async fn after_the_grace_and_not_before() {
    let db = Db::new().await;
    let store = db.store();
    replica(&store, "r", &[host("h", &["agent:code"], 1)]).await;
    let id = create(&store, task(&["agent:web"], Mode::Undecided), 1).await[0];
    db.execute("update fleet.tasks set ready_at = now() - interval '59 minutes'").await;
    assert_eq!(decide(&store).await, 0);
    assert_eq!(mode(&store, id).await, Mode::Undecided);
    wait_out_the_grace(&db).await;
    assert_eq!(decide(&store).await, 1);
    assert_eq!(mode(&store, id).await, Mode::HttpPull);
    assert_eq!(decide(&store).await, 0, "once decided, it stays");
    let session = agent(&store, "a", &["agent:web"], 1).await;
    assert_eq!(pull(&store, session).await.unwrap().task_id, id);
    db.check_history().await;
}

#[tokio::test]
async fn the_grace_begins_anew_when_a_task_returns_to_the_queue() {
    let db = Db::new().await;
    let store = db.store();
    replica(&store, "r", &[]).await;
    let id = create(&store, task(&[], Mode::Undecided), 1).await[0];
    wait_out_the_grace(&db).await;
    store.cancel_task(id, &operator(), None).await.unwrap().unwrap();
    store.retry_task(id, &operator(), None).await.unwrap().unwrap();
    assert_eq!(decide(&store).await, 0);
}

#[tokio::test]
async fn never_for_a_lane_that_an_offline_a_full_or_a_draining_host_could_serve() {
    let db = Db::new().await;
    let store = db.store();
    let hosts = [
        host("offline", &["agent:off"], 1),
        host("full", &["agent:full"], 1),
        host("draining", &["agent:drain"], 1),
    ];
    let (boot, slots) = replica(&store, "r", &hosts).await;
    let probe = HostProbe {
        online: false,
        reason: Some("it is switched off".into()),
        missing: vec!["ok".into()],
    };
    store.set_host_probe(boot, "offline", &probe).await.unwrap();
    db.execute("update fleet.hosts set drained_at = now() where host_id = 'draining'").await;
    create(&store, task(&["agent:full"], Mode::Undecided), 1).await;
    assert_eq!(push(&store, boot, &[slots["full"]]).await.len(), 1);
    for label in ["agent:off", "agent:full", "agent:drain"] {
        create(&store, task(&[label], Mode::Undecided), 2).await;
    }
    let nobodys = create(&store, task(&["agent:off", "agent:full"], Mode::Undecided), 1).await[0];
    wait_out_the_grace(&db).await;
    assert_eq!(decide(&store).await, 1, "no one host has both");
    assert_eq!(mode(&store, nobodys).await, Mode::HttpPull);
    assert!(push(&store, boot, &[slots["draining"]]).await.is_empty());
    db.check_history().await;
}

#[tokio::test]
async fn not_before_every_live_replica_has_listed_its_hosts() {
    let db = Db::new().await;
    let store = db.store();
    replica(&store, "r1", &[]).await;
    create(&store, task(&["agent:code"], Mode::Undecided), 1).await;
    wait_out_the_grace(&db).await;
    let second = store.begin_replica("r2", "here", MACHINE, HOUR).await.unwrap();
    assert_eq!(decide(&store).await, 0, "r2 may know a host");
    let hosts = [host("h", &["agent:code"], 1)];
    let listing =
        HostListing { replica_id: "r2", session: second, machine: MACHINE, hosts: &hosts };
    store.upsert_hosts(listing).await.unwrap();
    assert_eq!(decide(&store).await, 0, "and it does");

    // A restart without that host: the earlier boot's list counts for as long as the grace.
    replica(&store, "r2", &[]).await;
    assert_eq!(decide(&store).await, 0, "a restart makes no host unknown");
    db.execute("update fleet.sessions set ended_at = now() - interval '61 minutes' where ended_at is not null")
        .await;
    assert_eq!(decide(&store).await, 1, "a host that no live replica lists is disabled");
}

#[tokio::test]
async fn a_replica_that_died_while_listing_holds_nobody_up() {
    let db = Db::new().await;
    let store = db.store();
    replica(&store, "r1", &[]).await;
    create(&store, task(&[], Mode::Undecided), 1).await;
    wait_out_the_grace(&db).await;
    let second = store.begin_replica("r2", "here", MACHINE, HOUR).await.unwrap();
    assert_eq!(decide(&store).await, 0);
    store.end_session(second, "silent").await.unwrap();
    assert_eq!(decide(&store).await, 1);
}

#[tokio::test]
async fn what_is_claimed_pinned_or_created_otherwise_is_not_decided() {
    let db = Db::new().await;
    let store = db.store();
    replica(&store, "r", &[]).await;
    let ssh = create(&store, task(&[], Mode::SshCli), 1).await[0];
    let pinned = create(&store, task(&[], Mode::Undecided), 1).await[0];
    store.assign_task(pinned, "h", Mode::SshCli, HOUR, &operator()).await.unwrap().unwrap();
    create(&store, task(&[], Mode::Undecided), 1).await;
    let session = agent(&store, "a", &[], 1).await;
    pull(&store, session).await.unwrap();
    wait_out_the_grace(&db).await;
    assert_eq!(decide(&store).await, 0);
    assert_eq!(mode(&store, ssh).await, Mode::SshCli);
    assert_eq!(mode(&store, pinned).await, Mode::SshCli);
}

#[tokio::test]
async fn in_bounded_batches_and_past_locked_rows() {
    let db = Db::new().await;
    let store = db.store();
    replica(&store, "r", &[]).await;
    create(&store, task(&[], Mode::Undecided), 1000).await;
    wait_out_the_grace(&db).await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.query("select 1 from fleet.tasks order by seq limit 1 for update", &[]).await.unwrap();
    assert_eq!(decide(&store).await, 500);
    assert_eq!(decide(&store).await, 499, "all but the locked one");
    tx.rollback().await.unwrap();
    assert_eq!(decide(&store).await, 1);
    db.check_history().await;
}

/// By the loop of a replica.
#[tokio::test]
async fn a_replica_leaves_to_pull_what_nobody_can_push() {
    let db = Db::new().await;
    let node =
        Node::start(&db, "r", "[dispatch]\ninterval = \"200ms\"\nundecided_grace = \"1s\"\n").await;
    let id = node.create("nobody's", &["agent:web"]).await;
    assert_eq!(node.task(&id).await["execution_mode"], "undecided");
    let task = eventually("it is left to pull", async || {
        let task = node.task(&id).await;
        (task["execution_mode"] == "http_pull").then_some(task)
    })
    .await;
    assert_eq!(task["status"], "created");
    let waited: f64 = db
        .rows(
            "select extract(epoch from d.at - c.at)::float8 from fleet.task_events c, fleet.task_events d
              where c.type = 'created' and d.type = 'decided'",
            &[],
        )
        .await[0]
        .get(0);
    assert!(waited >= 1.0, "{waited} s is less than the grace");
    node.register("a", &["agent:web"], 1).await;
    let task = node.dequeue("a", 5).await.unwrap();
    assert_eq!(task["task_id"], id.as_str());
    node.complete(&task, "a").await;
    db.check_history().await;
    node.stop().await;
}
