//! What a receiver gets: real processes, a real database, and whoever records what happened last.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{TRACE, caller, create};
use crate::support::{
    db::Db,
    eventually,
    forge::{Issue, SECRET, post, sign},
    host::SshHost,
    otlp::{Receiver, Span},
    program::Serve,
    sshd::free_port,
};

const TOML: &str = "[auth]\nmode = \"open\"\n[dispatch]\ninterval = \"1s\"\n[tasks]\nretry_backoff = \"50ms\"\n\
                    [forgejo]\nwebhook_secret = \"webhook-secret\"\n";

/// A replica that sends its traces there, soon.
fn serve(db: &Db, replica_id: &str, endpoint: &str, toml: &str) -> Serve {
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    Serve::start_in(&environment, db.url(), replica_id, &format!("{TOML}{toml}"))
}

/// POST that must be answered with 200 or 201.
async fn must(serve: &Serve, path: &str, body: Value) -> Value {
    let url = format!("{}/api/v1/{path}", serve.url);
    let reply = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    let status = reply.status();
    assert!(status.is_success(), "{path}: {status} {}", reply.text().await.unwrap());
    reply.json().await.unwrap()
}

/// Waits until a task has this status.
async fn until(serve: &Serve, task: &Value, status: &str) -> Value {
    let url = format!("{}/api/v1/tasks/{}", serve.url, task["task_id"].as_str().unwrap());
    eventually(&format!("the task is {status}"), async || {
        let task: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
        (task["status"] == status).then_some(task)
    })
    .await
}

async fn register(serve: &Serve, agent: &str, capabilities: &[&str]) {
    let body = json!({"agent_id": agent, "agent_type": "t", "hostname": "h", "capabilities": capabilities});
    must(serve, "agents/register", body).await;
}

/// The trace that a task is in, and the span that made it.
fn trace_of(task: &Value) -> (String, String) {
    let parts: Vec<&str> = task["traceparent"].as_str().unwrap().split('-').collect();
    (parts[1].to_owned(), parts[2].to_owned())
}

fn attributes<'a>(span: &'a Span, names: &[&str]) -> Vec<&'a str> {
    names.iter().map(|name| span.attributes[*name].as_str()).collect()
}

#[tokio::test]
async fn a_delivery_is_followed_to_its_receipt_whichever_replica_sees_what() {
    let receiver = Receiver::start().await;
    let db = Db::new().await;
    for (number, replicas) in [(41, &["only"][..]), (42, &["a", "b"])] {
        let mut nodes: Vec<Serve> =
            replicas.iter().map(|id| serve(&db, id, &receiver.url, "")).collect();
        for node in &mut nodes {
            node.ready().await;
        }
        let (a, b) = (&nodes[0], nodes.last().unwrap());
        register(a, "puller", &["agent:code"]).await;

        let issue = Issue::new(number).title("the-title-of-it").body("the-text-of-it");
        let delivery = issue.delivery("opened");
        let mut headers = delivery.headers();
        headers.push(("x-forgejo-signature", sign(SECRET, &delivery.body)));
        // Each in a trace of its own.
        let trace = format!("{}{number}", &TRACE[..30]);
        headers.push(("traceparent", caller("01").replace(TRACE, &trace)));
        let (status, reply) = post(&a.url, &headers, delivery.body.clone()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{reply}");

        let task = must(b, "tasks/dequeue", json!({"agent_id": "puller", "wait_secs": 20})).await;
        let (id, lease) = (task["task_id"].as_str().unwrap(), &task["lease"]);
        let running = json!({"agent_id": "puller", "lease": lease, "status": "running"});
        must(b, &format!("tasks/{id}/status"), running).await;
        let receipt = json!({"agent_id": "puller", "lease": lease, "status": "completed",
                             "summary": "the-word-of-the-agent"});
        // Sent twice, done once.
        for _ in 0..2 {
            must(a, &format!("tasks/{id}/complete"), receipt.clone()).await;
        }

        let names = ["webhook", "claim", "run", "receipt"];
        let spans = receiver.trace(&trace, &names).await;
        let [webhook, claim, run, receipt] = names.map(|name| &spans[name]);
        assert_eq!(webhook.parent, "b7ad6b7169203331", "the sender's");
        assert_eq!(trace_of(&task), (trace.clone(), webhook.span_id.clone()));
        assert_eq!((&claim.parent, &run.parent), (&webhook.span_id, &webhook.span_id));
        assert_eq!(receipt.parent, run.span_id);
        let (first, last) = (replicas[0], *replicas.last().unwrap());
        let seen = [webhook, claim, run, receipt].map(Span::replica);
        assert_eq!(seen, [first, last, first, first]);
        assert!(webhook.begin < claim.begin && claim.begin <= claim.end && claim.end < run.end);
        assert!(run.begin > webhook.begin && run.begin < receipt.begin);
        assert!(receipt.end <= run.end);
        assert_eq!(run.marks, ["running"]);
        let key = issue.key();
        let made = attributes(webhook, &["task.id", "task.key", "task.outcome"]);
        assert_eq!(made, [id, &key, "created"]);
        for span in [claim, run, receipt] {
            let told = attributes(span, &["task.id", "task.lease", "task.attempt", "agent.id"]);
            assert_eq!(told, [id, "1", "1", "puller"], "{span:?}");
        }
        assert_eq!(attributes(run, &["task.outcome", "task.status"]), ["completed", "completed"]);
        assert!(spans.values().all(|span| !span.failed));
        for span in spans.values() {
            assert_eq!(span.resource["service.name"], "agent-fleet");
            assert_eq!(span.resource["deployment.environment.name"], "test");
        }
        // In good order: what was not sent yet is sent at the end.
        for node in &mut nodes {
            node.program.signal("TERM");
            assert!(node.program.ended().await.success(), "{}", node.program.stderr());
        }
    }
    for text in ["the-title", "the-text", "the-word", SECRET, "Lighthouse"] {
        assert!(!receiver.has_text(text), "{text} is in a span");
    }
    db.check_history().await;
}

#[tokio::test]
async fn each_attempt_is_told_and_a_task_without_a_caller_begins_a_trace() {
    let receiver = Receiver::start().await;
    let db = Db::new().await;
    let mut node = serve(&db, "a", &receiver.url, "");
    node.ready().await;
    register(&node, "puller", &["agent:puller"]).await;
    register(&node, "other", &["agent:other"]).await;
    // A trace of its own for each, whatever nonsense is said.
    let pair = json!([{"title": "x", "labels": ["agent:puller"], "max_retries": 1},
                      {"title": "y", "labels": ["agent:other"]}]);
    let (_, tasks) = create(&node.url, &["00-0-0-00"], &pair).await;
    let (one, other) = (trace_of(&tasks[0]), trace_of(&tasks[1]));
    assert_ne!(one.0, other.0);
    let dequeue = async |agent: &str| {
        must(&node, "tasks/dequeue", json!({"agent_id": agent, "wait_secs": 20})).await
    };
    let task = dequeue("puller").await;
    let path = format!("tasks/{}", task["task_id"].as_str().unwrap());
    assert_eq!(trace_of(&task), one);
    let failed = json!({"agent_id": "puller", "lease": 1, "status": "failed", "summary": "no"});
    must(&node, &format!("{path}/complete"), failed).await;
    let names = ["create", "claim", "run", "receipt"];
    let spans = receiver.trace(&one.0, &names).await;
    assert_eq!((spans["create"].parent.as_str(), &spans["create"].span_id), ("", &one.1));
    assert!(spans["run"].failed);
    assert_eq!(
        attributes(&spans["run"], &["task.outcome", "task.status"]),
        ["failed", "scheduled"]
    );
    // The other one is called off while it is held.
    let second = dequeue("other").await;
    assert_eq!(trace_of(&second), other);
    must(&node, &format!("tasks/{}/cancel", second["task_id"].as_str().unwrap()), json!({})).await;
    let spans = receiver.trace(&other.0, &["create", "claim", "run"]).await;
    assert_eq!(attributes(&spans["run"], &["task.outcome", "agent.id"]), ["cancelled", "other"]);
    // The first again: its second attempt, in the same trace; given back.
    let task = dequeue("puller").await;
    assert_eq!((trace_of(&task), &task["attempt"]), (one.clone(), &json!(2)));
    let back = json!({"agent_id": "puller", "lease": task["lease"], "retry_after_secs": 3600});
    must(&node, &format!("{path}/release"), back).await;
    let all = eventually("two attempts are told", async || {
        let spans = receiver.spans().into_iter().filter(|span| span.trace_id == one.0);
        let runs: Vec<Span> = spans.filter(|span| span.name == "run").collect();
        (runs.len() == 2).then_some(runs)
    })
    .await;
    assert_eq!(attributes(&all[1], &["task.outcome", "task.attempt"]), ["released", "2"]);
    // What its caller does not record is not recorded here either, and its trace goes on all the same.
    let (_, task) = create(&node.url, &[&caller("00")], &json!({"title": "quiet"})).await;
    assert_eq!(trace_of(&task).0, TRACE);
    assert!(task["traceparent"].as_str().unwrap().ends_with("-00"), "{task}");
    node.program.signal("TERM");
    assert!(node.program.ended().await.success());
    assert!(receiver.spans().iter().all(|span| span.trace_id != TRACE));
    db.check_history().await;
}

#[tokio::test]
async fn a_run_on_a_host_is_one_span_also_when_its_replica_dies() {
    let host =
        SshHost::start("cat >/dev/null; echo $TRACEPARENT; until [ -e ~/go ]; do sleep 0.05; done")
            .await;
    let receiver = Receiver::start().await;
    let db = Db::new().await;
    let toml = format!("[lease]\nreplica_ttl = \"3s\"\n{}", host.toml);
    let mut a = serve(&db, "a", &receiver.url, &toml);
    a.ready().await;
    let labels = json!({"title": "x", "labels": ["agent:code"]});
    let task = must(&a, "tasks", labels.clone()).await;
    let (trace, made) = trace_of(&task);
    until(&a, &task, "running").await;
    receiver.trace(&trace, &["create", "claim"]).await;
    // Killed in the middle of the run, which another follows to its end.
    a.program.signal("KILL");
    a.program.ended().await;
    let mut b = serve(&db, "b", &receiver.url, &toml);
    b.ready().await;
    eventually("the run is taken over", async || {
        receiver.spans().iter().any(|span| span.name == "takeover").then_some(())
    })
    .await;
    host.touch("go");
    let ended = until(&b, &task, "completed").await;
    assert!(ended["summary"].as_str().unwrap().contains(task["traceparent"].as_str().unwrap()));
    let names = ["create", "claim", "takeover", "run", "receipt"];
    let spans = receiver.trace(&trace, &names).await;
    let [create, claim, takeover, run, receipt] = names.map(|name| &spans[name]);
    assert_eq!(create.span_id, made);
    assert!([claim, takeover, run].iter().all(|span| span.parent == made));
    assert_eq!(receipt.parent, run.span_id);
    let seen = [create, claim, takeover, run, receipt].map(Span::replica);
    assert_eq!(seen, ["a", "a", "b", "b", "b"]);
    assert!(claim.begin < run.begin && run.begin < takeover.begin && takeover.end < run.end);
    for (span, lease) in [(claim, "1"), (takeover, "2"), (run, "2")] {
        let told = attributes(span, &["host.name", "task.attempt", "task.lease"]);
        assert_eq!(told, ["h1/demo", "1", lease], "{span:?}");
    }
    assert_eq!(host.starts(), 1);

    // One that nothing disturbs.
    let task = must(&b, "tasks", labels).await;
    until(&b, &task, "completed").await;
    let spans = receiver.trace(&trace_of(&task).0, &["create", "claim", "run", "receipt"]).await;
    assert_eq!(spans["receipt"].parent, spans["run"].span_id);
    assert_eq!(attributes(&spans["run"], &["host.name", "task.outcome"]), ["h1/demo", "completed"]);
    db.check_history().await;
}

#[tokio::test]
async fn a_receiver_that_is_away_disturbs_nobody_and_is_told_of_once() {
    let db = Db::new().await;
    let port = free_port();
    let mut node = serve(&db, "a", &format!("http://127.0.0.1:{port}"), "");
    node.ready().await;
    let said = |node: &Serve, text: &str| node.program.stderr().matches(text).count();
    for _ in 0..3 {
        for _ in 0..20 {
            must(&node, "tasks", json!({"title": "x"})).await;
        }
        node.program.until_said("traces are not taken").await;
    }
    let receiver = Receiver::start_on(port).await;
    eventually("traces are taken again", async || {
        must(&node, "tasks", json!({"title": "x"})).await;
        (said(&node, "traces are taken again") == 1).then_some(())
    })
    .await;
    assert!(!receiver.spans().is_empty());
    assert_eq!(said(&node, "traces are not taken"), 1);
    node.program.signal("TERM");
    assert!(node.program.ended().await.success());

    // One that takes connections and never answers.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut node = serve(&db, "b", &format!("http://{}", mute.local_addr().unwrap()), "");
    node.ready().await;
    register(&node, "puller", &[]).await;
    let begun = Instant::now();
    for _ in 0..50 {
        must(&node, "tasks", json!({"title": "x"})).await;
        let task = must(&node, "tasks/dequeue", json!({"agent_id": "puller"})).await;
        let path = format!("tasks/{}/complete", task["task_id"].as_str().unwrap());
        let done = json!({"agent_id": "puller", "lease": task["lease"], "status": "completed", "summary": ""});
        must(&node, &path, done).await;
    }
    // The exporter waits for 10 s.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let begun = Instant::now();
    node.program.signal("TERM");
    assert!(node.program.ended().await.success(), "{}", node.program.stderr());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(node.program.stderr().contains("the last traces could not be sent"));
    db.check_history().await;
}
