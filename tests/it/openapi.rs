//! `docs/openapi.yaml` against the program: the same routes, examples that are valid, and real answers that are, too.

use std::{collections::BTreeSet, fs, path::Path};

use agent_fleet::web::OPENAPI;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{api, db::Db, node::Node};

fn spec() -> Value {
    serde_yaml_ng::from_str(OPENAPI).unwrap()
}

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Each operation as `GET /path`, with its operation.
fn operations(spec: &Value) -> Vec<(String, String, &Value)> {
    let mut all = Vec::new();
    for (path, item) in spec["paths"].as_object().unwrap() {
        for method in METHODS {
            if let Some(operation) = item.get(method) {
                all.push((method.to_uppercase(), path.clone(), operation));
            }
        }
    }
    all
}

/// A path with its parameters as `*`.
fn shape(path: &str) -> String {
    path.split('/').map(|s| if s.starts_with('{') { "*" } else { s }).collect::<Vec<_>>().join("/")
}

/// Every route that the sources of the API hold, as `GET /path`: `warp::path!(…)` and the method that follows it.
fn routes_in_sources() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api")).unwrap();
    for path in entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
        let text = fs::read_to_string(path).unwrap();
        let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let parts: Vec<&str> = text.split("warp::path!(").collect();
        for pair in parts.windows(2) {
            let (before, part) = (pair[0], pair[1]);
            let (path, rest) = part.split_once(')').unwrap();
            let path: Vec<&str> = path
                .split(" / ")
                .map(|s| if s.starts_with('"') { s.trim_matches('"') } else { "*" })
                .collect();
            let method = METHODS
                .into_iter()
                .filter_map(|m| rest.find(&format!("warp::{m}()")).map(|place| (place, m)))
                .min()
                .expect("a method after each path");
            let prefix = if before.trim_end().ends_with("v1() .and(")
                || before.trim_end().ends_with("v1().and(")
            {
                "/api/v1/"
            } else {
                "/"
            };
            found.insert(format!("{} {prefix}{}", method.1.to_uppercase(), path.join("/")));
        }
    }
    found
}

#[test]
fn the_file_has_every_route_and_no_other() {
    let spec = spec();
    let described: BTreeSet<String> = operations(&spec)
        .iter()
        .map(|(method, path, _)| format!("{method} {}", shape(path)))
        .collect();
    let pages = BTreeSet::from(["GET /docs".to_owned()]);
    let routes: BTreeSet<String> = routes_in_sources().difference(&pages).cloned().collect();
    let missing: Vec<_> = routes.difference(&described).collect();
    let extra: Vec<_> = described.difference(&routes).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "not described: {missing:?}; not there: {extra:?}"
    );
}

/// A schema of the file as one that stands alone.
fn validator(spec: &Value, schema: &Value) -> jsonschema::Validator {
    let mut whole = schema.clone();
    whole["components"] = spec["components"].clone();
    jsonschema::options().should_validate_formats(true).build(&whole).unwrap()
}

fn check(spec: &Value, schema: &Value, value: &Value, what: &str) {
    let errors: Vec<String> = validator(spec, schema)
        .iter_errors(value)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what}: {errors:?}\n{value}");
}

/// Follows a `$ref` within the file.
fn resolve<'a>(spec: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(name) => spec.pointer(name.strip_prefix('#').unwrap()).unwrap(),
        None => value,
    }
}

#[test]
fn every_example_is_valid() {
    let spec = spec();
    let mut count = 0;
    for (method, path, operation) in operations(&spec) {
        let answers = operation["responses"].as_object().unwrap().iter();
        let bodies = answers
            .map(|(status, body)| (status.as_str(), resolve(&spec, body)))
            .chain(operation.get("requestBody").map(|body| ("request", body)));
        for (part, body) in bodies {
            let media = body["content"].as_object().into_iter().flat_map(|c| c.values());
            for media in media {
                let named = media["examples"].as_object().into_iter().flat_map(|e| e.values());
                let examples =
                    named.map(|e| &resolve(&spec, e)["value"]).chain(media.get("example"));
                for example in examples {
                    check(&spec, &media["schema"], example, &format!("{method} {path} {part}"));
                    count += 1;
                }
            }
        }
    }
    assert!(count > 50, "{count} examples");
}

/// Checks a real answer against what the file says of it.
fn check_answer(spec: &Value, method: &str, path: &str, status: StatusCode, body: &Value) {
    let operation = &spec["paths"][path][method.to_lowercase()];
    let answer = resolve(spec, &operation["responses"][status.as_str()]);
    assert!(answer.is_object(), "{method} {path} answers {status}, which is not described: {body}");
    if let Some(media) = answer["content"].get("application/json") {
        check(spec, &media["schema"], body, &format!("{method} {path} {status}"));
    }
}

#[tokio::test]
async fn real_answers_are_as_described() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let spec = spec();
    node.register("agent-1", &["agent:code"], 5).await;
    let post = async |path: &str, url: &str, body: Value| {
        let (status, answer) = node.post(url, body).await;
        check_answer(&spec, "POST", path, status, &answer);
        answer
    };
    let full = json!({"title": "t", "labels": ["agent:code"], "key": "k#1", "repo": {"full_name": "o/r"}, "issue_url": "https://x/1"});
    post("/api/v1/tasks", "/api/v1/tasks", full.clone()).await;
    post("/api/v1/tasks", "/api/v1/tasks", full).await;
    post("/api/v1/tasks", "/api/v1/tasks", json!([{"title": "a"}, {"title": "b"}])).await;
    let dequeue = json!({"agent_id": "agent-1"});
    let task = post("/api/v1/tasks/dequeue", "/api/v1/tasks/dequeue", dequeue.clone()).await;
    let (id, lease) = (task["task_id"].as_str().unwrap(), task["lease"].as_i64().unwrap());
    for endpoint in api::endpoints(id, "agent-1", lease) {
        let path = endpoint.name.replace("{agent}", "{agent_id}");
        let token = None;
        let body = (endpoint.method != Method::GET).then_some(&endpoint.body);
        let (status, answer) =
            node.send(endpoint.method.clone(), &endpoint.path, token, body).await;
        check_answer(&spec, endpoint.method.as_str(), &path, status, &answer);
    }
    // What only readers ask, once more after all that: tasks that have ended, receipts, events.
    for (path, url) in [
        ("/api/v1/tasks", "/api/v1/tasks".to_owned()),
        ("/api/v1/tasks/{id}", format!("/api/v1/tasks/{id}")),
        ("/api/v1/tasks/{id}", "/api/v1/tasks/none".to_owned()),
        ("/api/v1/events", "/api/v1/events?limit=500".to_owned()),
        ("/api/v1/events", "/api/v1/events?limit=0".to_owned()),
        ("/api/v1/tasks/{id}/logs", format!("/api/v1/tasks/{id}/logs")),
        ("/api/v1/agents/{agent_id}", "/api/v1/agents/nobody".to_owned()),
    ] {
        let (status, answer) = node.get(&url).await;
        check_answer(&spec, "GET", path, status, &answer);
    }
    node.stop().await;
}

#[tokio::test]
async fn the_file_and_its_page_are_served_without_a_credential() {
    let db = Db::new().await;
    let node = Node::start(
        &db,
        "r1",
        "[auth]\nmode = \"token\"\nadmin_token = \"an-admin-token-of-some-length\"",
    )
    .await;
    let http = reqwest::Client::new();
    let file = http.get(format!("{}/api/v1/openapi.yaml", node.url)).send().await.unwrap();
    assert_eq!(file.headers()["content-type"], "application/yaml");
    assert_eq!(file.text().await.unwrap(), OPENAPI);
    let page = http.get(format!("{}/docs", node.url)).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    assert!(
        page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'")
    );
    assert!(page.text().await.unwrap().contains("dequeue"));
    node.stop().await;
}
