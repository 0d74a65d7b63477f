//! A CLI that is out of quota or not logged in says nothing about its task: the attempt is refunded, the CLI rests.

use agent_fleet::{
    model::{ExecutionMode, HostAgentId, Lease},
    store::{Ended, HeldLease, Outcome, Store},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::{db::Db, eventually, fleet, host::SshHost, node::Node};

/// Fails as codex does, until there is a file `paid` in the home.
fn out_of(said: &str) -> String {
    let failed = json!({"type": "turn.failed", "error": {"message": said}});
    format!(
        "cat >/dev/null
         if [ -e ~/paid ]; then echo '{{\"type\":\"turn.completed\"}}'; exit 0; fi
         echo '{failed}'; exit 1"
    )
}

async fn codex_host(said: &str) -> SshHost {
    let mut host = SshHost::start(&out_of(said)).await;
    host.toml = host.toml.replace("output = \"raw\"", "output = \"codex-json\"");
    host
}

/// The one CLI of the host, once it is parked.
async fn until_parked(node: &Node) -> Value {
    eventually("the CLI is parked", async || {
        let (_, hosts) = node.get("/api/v1/hosts").await;
        let agent = hosts["items"][0]["agents"][0].clone();
        agent["parked_until"].is_string().then_some(agent)
    })
    .await
}

fn count(task: &Value, event: &str) -> usize {
    task["events"].as_array().unwrap().iter().filter(|e| e["type"] == event).count()
}

#[tokio::test]
async fn a_cli_out_of_quota_rests_until_the_moment_that_it_named() {
    let host = codex_host("Error: you hit your usage limit. Try again in 2 hours.").await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = node.create("first", &["agent:code"]).await;
    let agent = until_parked(&node).await;
    let until: Timestamp = agent["parked_until"].as_str().unwrap().parse().unwrap();
    let rests = until.duration_since(Timestamp::now());
    assert!(rests > SignedDuration::from_mins(115) && rests <= SignedDuration::from_hours(2));
    assert!(agent["parked_reason"].as_str().unwrap().contains("usage limit"), "{agent}");
    let waits = eventually("the task waits for quota", async || {
        let task = node.task(&id).await;
        (task["waiting_reason"] == "quota").then_some(task)
    })
    .await;
    assert_eq!(waits["status"], "created");
    assert_eq!((&waits["attempt"], &waits["retry_count"]), (&json!(0), &json!(0)), "{waits}");
    assert_eq!((count(&waits, "released"), waits["receipts"].as_array().unwrap().len()), (1, 0));
    // Others are not given to it either.
    let other = node.create("second", &["agent:code"]).await;
    eventually("the dispatcher has looked", async || {
        (node.task(&other).await["waiting_reason"] == "quota").then_some(())
    })
    .await;
    assert_eq!(host.starts(), 1);
    host.touch("paid");
    node.must("/api/v1/hosts/h1/resume", json!({})).await;
    for id in [&id, &other] {
        let task = node.until(id, "completed").await;
        assert_eq!(task["attempt"], 1);
    }
    assert_eq!(host.starts(), 3);
    let (_, hosts) = node.get("/api/v1/hosts").await;
    assert_eq!(hosts["items"][0]["agents"][0]["parked_reason"], Value::Null);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_task_whose_cli_is_never_logged_in_ends() {
    let host = codex_host("unexpected status 401 Unauthorized").await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let body = json!({"title": "poison", "labels": ["agent:code"], "max_retries": 0});
    let task = node.must("/api/v1/tasks", body).await;
    let id = task["task_id"].as_str().unwrap();
    let task = eventually("it is over", async || {
        node.must("/api/v1/hosts/h1/resume", json!({})).await;
        let task = node.task(id).await;
        (task["status"] == "agent_lost").then_some(task)
    })
    .await;
    // Five refunds, and the sixth time counts.
    assert_eq!(
        (count(&task, "claimed"), count(&task, "released"), count(&task, "lost")),
        (6, 5, 1)
    );
    assert_eq!(host.starts(), 6);
    assert!(task["error"].as_str().unwrap().contains("401"), "{task}");
    db.check_history().await;
    node.stop().await;
}

/// Parks for no named moment, and answers for how many minutes.
async fn park(db: &Db, store: &Store, held: &HeldLease) -> Option<i64> {
    store.park_host_agent(held, None, "out of quota").await.unwrap()?;
    let minutes = "select round(extract(epoch from max(parked_until) - now()) / 60)::bigint from fleet.host_agents";
    Some(db.count(minutes).await)
}

#[tokio::test]
async fn each_repetition_doubles_the_rest_and_a_success_forgets_it() {
    let db = Db::new().await;
    let store = db.store();
    let hosts = [fleet::host("h", &["agent:x"], 2)];
    let (boot, slots) = fleet::replica(&store, "r", &hosts).await;
    let slot: HostAgentId = slots["h"];
    fleet::create(&store, fleet::task(&["agent:x"], ExecutionMode::SshCli), 3).await;
    let held = fleet::push(&store, boot, &[slot]).await;
    assert_eq!(held.len(), 2);
    let over = "update fleet.host_agents set parked_until = now() - interval '1 second'";
    assert_eq!(park(&db, &store, &held[0]).await, Some(15));
    // The other run finds the same, and a success that began before changes nothing.
    assert_eq!(park(&db, &store, &held[1]).await, Some(15));
    store.set_host_agent_sound(slot).await.unwrap();
    db.execute(over).await;
    assert_eq!(park(&db, &store, &held[0]).await, Some(30));
    // Nobody but the holder parks.
    let stranger = HeldLease { lease: Lease(9), ..held[0] };
    db.execute(over).await;
    assert_eq!(park(&db, &store, &stranger).await, None);
    for minutes in [60, 120, 240, 480, 960, 1440, 1440] {
        assert_eq!(park(&db, &store, &held[0]).await, Some(minutes));
        db.execute(over).await;
    }
    store.set_host_agent_sound(slot).await.unwrap();
    assert_eq!(park(&db, &store, &held[0]).await, Some(15));
    // Parked: nothing is claimed for it, though a slot is free.
    assert!(matches!(fleet::end(&store, held[0], Outcome::Released).await, Ended::Now(_)));
    assert_eq!(fleet::push(&store, boot, &[slot]).await, []);
    assert!(store.set_host_drained("h", false).await.unwrap());
    assert_eq!(fleet::push(&store, boot, &[slot]).await.len(), 1);
}
