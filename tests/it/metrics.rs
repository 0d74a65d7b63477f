//! The page that Prometheus reads, and what the alert rules and the dashboard make of it.

use std::{collections::BTreeSet, path::Path};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    forge::{Issue, SECRET, post, sign},
    node::Node,
    program::Serve,
};

const TOKENS: &str = "[auth]\nmode = \"token\"\nadmin_token = \"admin\"\nviewer_token = \"viewer\"\n\
                      enrollment_token = \"enroll\"\n";

async fn page(url: &str, token: Option<&str>) -> (StatusCode, String) {
    let request = reqwest::Client::new().get(format!("{url}/metrics"));
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let response = request.send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

/// Names as Prometheus has them, without what a histogram appends.
fn names(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// The names of ours that a text mentions.
fn mentioned(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("agent_fleet_"))
        .map(|word| {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|e| word.strip_suffix(e));
            base.unwrap_or(word).to_owned()
        })
        .collect()
}

#[tokio::test]
async fn rules_and_dashboard_name_only_what_there_is() {
    let db = Db::new().await;
    let toml = format!("{TOKENS}[forgejo]\nwebhook_secret = \"{SECRET}\"\n");
    let mut serve = Serve::start(db.url(), "metrics", &toml);
    serve.ready().await;
    // One task from the forge, pulled and completed, so that everything has been counted once.
    let delivery = Issue::new(7).delivery("opened");
    let mut headers = delivery.headers();
    headers.push(("x-forgejo-signature", sign(SECRET, &delivery.body)));
    assert!(post(&serve.url, &headers, delivery.body.clone()).await.0.is_success());
    let http = reqwest::Client::new();
    let call = async |path: &str, token: &str, body: Value| -> Value {
        let request = http.post(format!("{}/api/v1/{path}", serve.url)).bearer_auth(token);
        let response = request.json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    };
    let capabilities = json!(["agent:code"]);
    let agent =
        json!({"agent_id": "a", "agent_type": "t", "hostname": "h", "capabilities": capabilities});
    let token = call("agents/register", "enroll", agent).await["registry_token"].clone();
    let token = token.as_str().unwrap();
    let task = call("tasks/dequeue", token, json!({"agent_id": "a", "wait_secs": 10})).await;
    let receipt = json!({"agent_id": "a", "lease": task["lease"], "status": "completed",
                         "duration_seconds": 1, "summary": "done", "artifacts": []});
    let complete = format!("tasks/{}/complete", task["task_id"].as_str().unwrap());
    call(&complete, token, receipt).await;

    let (status, page) = page(&serve.url, Some("viewer")).await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        "agent_fleet_claims_total{mode=\"http_pull\"} 1",
        "agent_fleet_leases_ended_total{outcome=\"completed\"} 1",
        "agent_fleet_transitions_total{status=\"completed\"} 1",
        "agent_fleet_webhook_deliveries_total{result=\"created\"} 1",
        "agent_fleet_database_up 1",
        "agent_fleet_database_writable 1",
        "agent_fleet_agents 1",
        "agent_fleet_replicas 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    // Those that are there only when there is something to tell.
    let mut known = names(&page);
    known.extend(
        ["statement_errors_total", "host_up", "lane_waiting", "lane_oldest_seconds", "tasks"]
            .map(|name| format!("agent_fleet_{name}")),
    );
    let monitoring = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring");
    for file in ["rules.yml", "grafana/agent-fleet.json", "README.md"] {
        let text = std::fs::read_to_string(monitoring.join(file)).unwrap();
        let used = mentioned(&text);
        assert!(used.len() > 10, "{file} names {used:?}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}; there are {known:?}");
    }
    let readme = std::fs::read_to_string(monitoring.join("README.md")).unwrap();
    let untold: Vec<_> = known.difference(&mentioned(&readme)).cloned().collect();
    assert!(untold.is_empty(), "README.md does not tell of {untold:?}");
    let dashboard = std::fs::read(monitoring.join("grafana/agent-fleet.json")).unwrap();
    serde_json::from_slice::<Value>(&dashboard).unwrap();
}

#[tokio::test]
async fn only_who_may_read_reads_it() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", TOKENS).await;
    for (token, status) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("nobody"), StatusCode::UNAUTHORIZED),
        (Some("enroll"), StatusCode::FORBIDDEN),
        (Some("viewer"), StatusCode::OK),
        (Some("admin"), StatusCode::OK),
    ] {
        assert_eq!(page(&node.url, token).await.0, status, "{token:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn the_queue_is_told_as_it_is() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "[auth]\nmode = \"open\"\n").await;
    for title in ["a", "b", "c"] {
        node.create(title, &["agent:nobody"]).await;
    }
    let (_, page) = page(&node.url, None).await;
    for line in [
        "agent_fleet_tasks{status=\"created\",mode=\"undecided\"} 3",
        "agent_fleet_lane_waiting{lane=\"agent:nobody\"} 3",
        "agent_fleet_lane_oldest_seconds{lane=\"agent:nobody\"} ",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    node.stop().await;
}
