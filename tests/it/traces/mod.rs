//! A task belongs to a trace: the caller's, where it names one; what is done for it is told to that trace.

#[cfg(feature = "otel")]
mod exported;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    forge::{Issue, SECRET, sign},
    host::{SshHost, output},
    node::Node,
    program::{Serve, agent_fleet, run},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// What a caller sends that is in a trace.
fn caller(flags: &str) -> String {
    format!("00-{TRACE}-b7ad6b7169203331-{flags}")
}

/// Creates tasks with these headers; status and body of the reply.
async fn create(url: &str, traceparents: &[&str], body: &Value) -> (StatusCode, Value) {
    let mut request = reqwest::Client::new().post(format!("{url}/api/v1/tasks")).json(body);
    for traceparent in traceparents {
        request = request.header("traceparent", *traceparent);
    }
    let reply = request.send().await.unwrap();
    (reply.status(), reply.json().await.unwrap())
}

#[tokio::test]
async fn a_callers_trace_is_kept_with_its_task() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    let (one, other) = (caller("01"), caller("00"));
    let upper = one.to_uppercase();
    let (one, other, upper) = (one.as_str(), other.as_str(), upper.as_str());
    let body = json!({"title": "x", "key": "k"});
    let (status, task) = create(&node.url, &[one], &body).await;
    assert_eq!((status, &task["traceparent"]), (StatusCode::CREATED, &json!(one)));
    // The same request in another trace is the same request.
    let (status, again) = create(&node.url, &[other], &body).await;
    assert_eq!((status, &again["traceparent"]), (StatusCode::OK, &json!(one)));
    // What is malformed, or said twice, is as if it had not been said.
    for given in [&[][..], &[upper], &["00-0-0-00"], &[one, other], &[one, one]] {
        let (status, task) = create(&node.url, given, &json!({"title": "x"})).await;
        assert_eq!(
            (status, &task["traceparent"]),
            (StatusCode::CREATED, &Value::Null),
            "{given:?}"
        );
    }
    // All of an array; in lists; to who pulls it.
    let (_, tasks) = create(&node.url, &[other], &json!([{"title": "y"}, {"title": "z"}])).await;
    assert!(tasks.as_array().unwrap().iter().all(|task| task["traceparent"] == other));
    let (_, list) = node.get("/api/v1/tasks").await;
    let kept = list["items"].as_array().unwrap().iter().filter(|t| t["traceparent"].is_string());
    assert_eq!(kept.count(), 3);
    node.register("agent", &[], 10).await;
    let task = node.dequeue("agent", 10).await.unwrap();
    assert_eq!((&task["key"], &task["traceparent"]), (&json!("k"), &json!(one)));
    let (status, task) = node.complete(&task, "agent").await;
    assert_eq!((status, &task["traceparent"]), (StatusCode::OK, &json!(one)));
    // A delivery's.
    let delivery = Issue::new(42).delivery("opened");
    let signature = sign(SECRET, &delivery.body);
    let headers = [("x-forgejo-signature", signature.as_str()), ("traceparent", one)];
    assert_eq!(delivery.send_with(&node, &headers).await.0, StatusCode::ACCEPTED);
    assert_eq!(node.task("org/repo#42").await["traceparent"], one);
    // Plain SQL writes no nonsense there.
    let nonsense = "insert into fleet.tasks (key, traceparent) values ('n', '00-x')";
    assert!(db.client.batch_execute(nonsense).await.is_err());
    node.stop().await;
}

#[tokio::test]
async fn a_run_on_a_host_knows_its_trace() {
    let host = SshHost::start("cat >/dev/null; echo \"<$TRACEPARENT>\"").await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let one = caller("01");
    for (given, said) in [(&[one.as_str()][..], format!("<{one}>\n")), (&[], "<>\n".to_owned())] {
        let (_, task) =
            create(&node.url, given, &json!({"title": "x", "labels": ["agent:code"]})).await;
        let task = node.until(task["task_id"].as_str().unwrap(), "completed").await;
        assert_eq!(output(&node, &task).await, said);
    }
    node.stop().await;
}

#[tokio::test]
async fn who_expects_traces_in_vain_is_told() {
    let db = Db::new().await;
    let toml = "[auth]\nmode = \"open\"\n";
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    if cfg!(feature = "otel") {
        // Of the wrong protocol, or an address that is none.
        for (variable, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "not an address"),
        ] {
            let mut command = agent_fleet(&["serve", "--listen", "127.0.0.1:0"]);
            command.env("DATABASE_URL", db.url()).env("AGENT_FLEET_AUTH_MODE", "open");
            command.env(endpoint.0, endpoint.1).env(variable, value);
            let said = run(command).await;
            assert_eq!(said.code, Some(2), "{}", said.stderr);
            assert!(said.stderr.contains(variable), "{}", said.stderr);
        }
    } else {
        let mut serve = Serve::start_in(&[endpoint], db.url(), "a", toml);
        serve.program.until_said("without the feature `otel`").await;
        serve.ready().await;
    }
}
