//! Agents over HTTP: registered, listed, kept alive, deregistered.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{api::is_error, db::Db, eventually, node::Node};

#[tokio::test]
async fn an_agent_as_it_registers_is_what_is_shown() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "[lease]\nheartbeat_interval = \"7s\"\n").await;
    let reply = node
        .must(
            "/api/v1/agents/register",
            json!({"agent_id": "Agent-1.x_2", "agent_type": "codex", "hostname": "box",
                   "capabilities": ["agent/code", "agent:rust", "agent:code"], "max_concurrency": 3,
                   "metadata": {"os": "linux"}}),
        )
        .await;
    let token = reply["registry_token"].as_str().unwrap().to_owned();
    assert_eq!(
        reply,
        json!({"agent_id": "Agent-1.x_2", "registry_token": token, "heartbeat_interval_secs": 7,
               "resumed": [], "lost": []})
    );
    let (status, agent) = node.get("/api/v1/agents/Agent-1.x_2").await;
    assert_eq!(status, StatusCode::OK);
    let at = |field: &str| agent[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(at("last_heartbeat_at") >= at("registered_at"));
    assert_eq!(
        agent,
        json!({"agent_id": "Agent-1.x_2", "agent_type": "codex", "hostname": "box",
               "capabilities": ["agent:code", "agent:rust"], "max_concurrency": 3,
               "metadata": {"os": "linux"}, "status": "online", "leased": 0,
               "last_heartbeat_at": agent["last_heartbeat_at"], "registered_at": agent["registered_at"]})
    );
    // Again: the same agent, as it is now.
    node.must(
        "/api/v1/agents/register",
        json!({"agent_id": "Agent-1.x_2", "agent_type": "claude", "hostname": "box2"}),
    )
    .await;
    let (_, agent) = node.get("/api/v1/agents/Agent-1.x_2").await;
    assert_eq!(agent["agent_type"], "claude");
    assert_eq!((&agent["max_concurrency"], &agent["capabilities"]), (&json!(1), &json!([])));
    assert_eq!(db.count("select count(*) from fleet.agents").await, 1);
    assert_eq!(
        db.count("select count(*) from fleet.sessions where kind = 'agent' and ended_at is null")
            .await,
        1
    );
    node.stop().await;
}

#[tokio::test]
async fn a_configured_hosts_id_is_no_agents() {
    let db = Db::new().await;
    let work = tempfile::tempdir().unwrap();
    let hosts = format!(
        "[[hosts]]\nhost_id = \"h1\"\nhostname = \"localhost\"\nwork_dir = {:?}\n\
         agents = [{{ agent_type = \"ok\", max_concurrency = 1, capabilities = [] }}]\n\
         [cli.ok]\ncommand = [\"true\"]\noutput = \"raw\"\n",
        work.path()
    );
    let node = Node::start(&db, "r1", &hosts).await;
    eventually("the host is listed", async || {
        let (_, hosts) = node.get("/api/v1/hosts").await;
        (hosts["items"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let body = json!({"agent_id": "h1", "agent_type": "t", "hostname": "h"});
    let (status, reply) = node.post("/api/v1/agents/register", body).await;
    is_error("a host's id", status, &reply, 409, "conflict");
    assert_eq!(db.count("select count(*) from fleet.agents").await, 0);
    node.stop().await;
}

#[tokio::test]
async fn agents_are_listed_by_page_status_and_capability() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    for n in 0..7 {
        let capability = if n % 2 == 0 { "agent:even" } else { "agent:odd" };
        node.register(&format!("a{n}"), &[capability, "agent:any"], 2).await;
    }
    node.must("/api/v1/agents/deregister", json!({"agent_id": "a3"})).await;
    node.create("t", &[]).await;
    node.dequeue("a4", 0).await.unwrap();
    let ids = |page: &Value| -> Vec<String> {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a["agent_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut seen = Vec::new();
    let mut path = "/api/v1/agents?limit=3".to_owned();
    for _ in 0..4 {
        let (status, page) = node.get(&path).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        seen.extend(ids(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/agents?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, ["a0", "a1", "a2", "a3", "a4", "a5", "a6"]);
    let (_, page) = node.get("/api/v1/agents?status=offline").await;
    assert_eq!(ids(&page), ["a3"]);
    let (_, page) = node.get("/api/v1/agents?status=online&capability=agent%3Aodd").await;
    assert_eq!(ids(&page), ["a1", "a5"]);
    let (_, page) = node.get("/api/v1/agents?status=draining").await;
    assert_eq!(ids(&page), Vec::<String>::new());
    let (_, agent) = node.get("/api/v1/agents/a4").await;
    assert_eq!(agent["leased"], 1);
    node.stop().await;
}

#[tokio::test]
async fn a_heartbeat_renews_the_lease_and_tells_what_was_cancelled() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 2).await;
    let body = json!({"agent_id": "a"});
    let quiet = json!({"status": "online", "cancel": [], "lost": [], "drain": false});
    assert_eq!(node.must("/api/v1/agents/heartbeat", body.clone()).await, quiet);
    let id = node.create("t", &[]).await;
    let task = node.dequeue("a", 0).await.unwrap();
    db.execute("update fleet.sessions set last_heartbeat_at = now() - interval '1 minute' where kind = 'agent'").await;
    let aged = node.task(&id).await["lease_expires_at"].as_str().unwrap().to_owned();
    node.must("/api/v1/agents/heartbeat", body.clone()).await;
    let renewed = node.task(&id).await["lease_expires_at"].as_str().unwrap().to_owned();
    let time = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    assert!(time(&renewed) > time(&aged), "{renewed} is not after {aged}");

    node.must(&format!("/api/v1/tasks/{id}/cancel"), json!({"reason": "not needed"})).await;
    // Told again, so that a lost reply loses nothing.
    for _ in 0..2 {
        let told = node.must("/api/v1/agents/heartbeat", body.clone()).await;
        assert_eq!(told["cancel"], json!([id]));
    }
    // Its status and log calls learn it, too.
    for (call, more) in [
        ("status", json!({"status": "running"})),
        ("logs", json!({"offset": 0, "data": "x"})),
        ("release", json!({})),
    ] {
        let mut body = json!({"agent_id": "a", "lease": task["lease"]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let (status, reply) = node.post(&format!("/api/v1/tasks/{id}/{call}"), body).await;
        is_error(call, status, &reply, 409, "lease_lost");
    }
    let (status, reply) =
        node.post("/api/v1/agents/heartbeat", json!({"agent_id": "nobody"})).await;
    is_error("a heartbeat of nobody", status, &reply, 404, "not_found");
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn deregistering_gives_its_tasks_back_without_an_attempt() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 2).await;
    let ids = [node.create("t1", &[]).await, node.create("t2", &[]).await];
    for _ in &ids {
        node.dequeue("a", 0).await.unwrap();
    }
    node.must("/api/v1/agents/deregister", json!({"agent_id": "a"})).await;
    for id in &ids {
        let task = node.task(id).await;
        assert_eq!(task["status"], "created");
        assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(0), &json!(0)));
        assert_eq!(task["lease"], 1, "the fencing number never falls");
    }
    let (_, agent) = node.get("/api/v1/agents/a").await;
    assert_eq!((&agent["status"], &agent["leased"]), (&json!("offline"), &json!(0)));
    for path in ["/api/v1/agents/deregister", "/api/v1/agents/heartbeat", "/api/v1/tasks/dequeue"] {
        let (status, reply) = node.post(path, json!({"agent_id": "a"})).await;
        is_error(path, status, &reply, 409, "session_ended");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn registering_anew_keeps_what_is_resumed_and_loses_the_rest() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 3).await;
    let body = json!({"title": "t", "key": "org/repo#1"});
    let kept = node.must("/api/v1/tasks", body).await["task_id"].clone();
    let dropped = node.create("t2", &[]).await;
    for _ in 0..2 {
        node.dequeue("a", 0).await.unwrap();
    }
    let foreign = node.create("t3", &[]).await;
    let reply = node
        .must(
            "/api/v1/agents/register",
            json!({"agent_id": "a", "agent_type": "t", "hostname": "h", "max_concurrency": 3,
                   "resume": ["org/repo#1", kept, foreign, "no-such-key"]}),
        )
        .await;
    assert_eq!(reply["resumed"], json!([{"task_id": kept, "lease": 1}]));
    let mut lost: Vec<&str> =
        reply["lost"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    lost.sort_unstable();
    let mut wanted = vec![foreign.as_str(), "no-such-key"];
    wanted.sort_unstable();
    assert_eq!(lost, wanted);
    // What it no longer works on counts as an attempt that was lost.
    let task = node.task(&dropped).await;
    assert_eq!((&task["retry_count"], &task["assigned_agent_id"]), (&json!(1), &json!("a")));
    node.until(&dropped, "created").await;
    // The resumed one goes on under the same lease, by the new session.
    let id = kept.as_str().unwrap();
    let task = node.task(id).await;
    assert_eq!(node.complete(&task, "a").await.0, StatusCode::OK);
    db.check_history().await;
    node.stop().await;
}
