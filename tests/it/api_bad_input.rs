//! Bad input to every endpoint: the error of the contract, nothing changed, and the replica lives.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    api::{Endpoint, Needs, endpoints, fingerprint, post_bytes, raw, request},
    db::Db,
    node::Node,
};

/// A replica with an agent `a` that holds a task with a key; all endpoints about them.
async fn stage() -> (Db, Node, Vec<Endpoint>) {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    let created = node.must("/api/v1/tasks", json!({"title": "held", "key": "org/repo#1"})).await;
    let task = node.dequeue("a", 0).await.unwrap();
    assert_eq!(task["task_id"], created["task_id"]);
    let all = endpoints(task["task_id"].as_str().unwrap(), "a", task["lease"].as_i64().unwrap());
    (db, node, all)
}

/// Those that read a JSON body and do not ask for a signature first.
fn with_body(all: &[Endpoint]) -> impl Iterator<Item = &Endpoint> {
    all.iter().filter(|e| e.method == Method::POST && e.needs != Needs::Signature)
}

/// Still well, and nothing has changed.
async fn unharmed(db: &Db, node: &Node, before: &std::collections::BTreeMap<String, String>) {
    assert_eq!(fingerprint(db).await, *before, "something changed");
    let (status, ready) = node.get("/readyz").await;
    assert_eq!(status, StatusCode::OK, "{ready}");
    db.check_history().await;
}

#[tokio::test]
async fn what_is_no_json_object_is_a_400() {
    let (db, node, all) = stage().await;
    let before = fingerprint(&db).await;
    let deep = "[".repeat(100_000);
    let deep_object = format!("{{\"title\":{}{}}}", "[".repeat(500), "]".repeat(500));
    for endpoint in with_body(&all) {
        let bodies: [(&str, &[u8]); 14] = [
            ("half an object", b"{"),
            ("half a string", b"{\"agent_id\":\"a"),
            ("rubbish", b"\x00\x01\x02\x03"),
            ("a number", b"3"),
            ("a string", b"\"x\""),
            ("null", b"null"),
            ("an empty array", b"[]"),
            ("an array of numbers", b"[1]"),
            ("an array whose name is none", br#"[{"task_id":{}}]"#),
            ("not UTF-8", b"{\"agent_id\":\"\xff\xfe\",\"title\":\"\xc3\x28\"}"),
            ("half a surrogate pair", br#"{"agent_id":"\ud800","title":"\ud800"}"#),
            ("a number out of range", br#"{"agent_id":1e999,"title":1e999}"#),
            ("a deep body", deep.as_bytes()),
            ("a deep field", deep_object.as_bytes()),
        ];
        for (what, body) in bodies {
            // What is ignored is ignored, whatever it holds.
            if what == "a deep field" && !endpoint.name.ends_with("/tasks") {
                continue;
            }
            let reply = post_bytes(&node, &endpoint.path, body).await;
            if what.starts_with("an array ") && endpoint.name.ends_with("/receipts") {
                // Each item of an array is judged on its own.
                let judged = &reply.body["results"][0];
                assert_eq!((reply.status.as_u16(), &judged["code"]), (200, &"bad_request".into()));
                assert!(judged["task_id"].is_null(), "{judged}");
                continue;
            }
            reply.is_error(&format!("{what} to {}", endpoint.name), 400, "bad_request");
        }
        if !endpoint.may_be_empty() {
            let reply = post_bytes(&node, &endpoint.path, "").await;
            reply.is_error(&format!("nothing to {}", endpoint.name), 400, "bad_request");
            let reply = post_bytes(&node, &endpoint.path, "{}").await;
            reply.is_error(&format!("no field to {}", endpoint.name), 400, "bad_request");
        }
    }
    unharmed(&db, &node, &before).await;
    node.stop().await;
}

#[tokio::test]
async fn another_content_type_is_a_415_and_another_method_a_405() {
    let (db, node, all) = stage().await;
    let before = fingerprint(&db).await;
    for endpoint in all.iter().filter(|e| e.method == Method::POST) {
        let body = endpoint.body.to_string().into_bytes();
        for content_type in
            [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("json")]
        {
            let headers: Vec<_> = content_type.iter().map(|t| ("content-type", *t)).collect();
            let reply =
                request(&node, &Method::POST, &endpoint.path, &headers, Some(body.clone())).await;
            reply.is_error(&format!("{content_type:?} to {}", endpoint.name), 415, "not_json");
        }
    }
    for endpoint in &all {
        let others = all.iter().filter(|e| e.path == endpoint.path).map(|e| &e.method);
        let known: Vec<&Method> = others.collect();
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            // `dequeue` may also be a task's key, `register` an agent's name, and an agent can be deleted.
            let is_name = method == Method::GET
                && (endpoint.path.ends_with("/dequeue") || endpoint.path.contains("/agents/"));
            let is_deleted = method == Method::DELETE
                && endpoint
                    .path
                    .rsplit_once('/')
                    .is_some_and(|(list, _)| list.ends_with("/agents"));
            if known.contains(&&method) || is_name || is_deleted {
                continue;
            }
            let reply = request(&node, &method, &endpoint.path, &[], None).await;
            reply.is_error(&format!("{method} {}", endpoint.name), 405, "method_not_allowed");
        }
    }
    for path in ["/nowhere", "/api/v2/tasks", "/api/v1/tasks/x/y", "/api/v1/agents/a/b/c", "/api"] {
        let reply = request(&node, &Method::POST, path, &[], None).await;
        reply.is_error(path, 404, "not_found");
    }
    unharmed(&db, &node, &before).await;
    node.stop().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_announced_or_not() {
    let (db, node, all) = stage().await;
    let before = fingerprint(&db).await;
    for endpoint in all.iter().filter(|e| e.method == Method::POST) {
        let limit = endpoint.limit << 20;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n",
            endpoint.path
        );
        // Refused by what it announces: the body itself is never sent.
        let announced = format!("{head}Content-Length: {}\r\n\r\n", limit + 1);
        let reply = raw(&node, &[announced.as_bytes()]).await;
        reply.is_error(&format!("too much to {}", endpoint.name), 413, "too_large");
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", limit + 1);
        let reply = raw(&node, &[chunked.as_bytes(), &vec![b' '; limit + 1]]).await;
        reply.is_error(&format!("too many chunks to {}", endpoint.name), 413, "too_large");
        // At the limit it is read, and refused for what it is.
        let full = format!("{head}Content-Length: {limit}\r\n\r\n");
        let reply = raw(&node, &[full.as_bytes(), &vec![b' '; limit]]).await;
        let refused = if endpoint.needs == Needs::Signature { 401 } else { 400 };
        assert_eq!(reply.status.as_u16(), refused, "{}: {}", endpoint.name, reply.body);
    }
    unharmed(&db, &node, &before).await;
    node.stop().await;
}

#[tokio::test]
async fn unknown_and_impossible_names_of_tasks() {
    let (db, node, all) = stage().await;
    let before = fingerprint(&db).await;
    let id = all.iter().find(|e| e.name.ends_with("/{id}")).unwrap().path.clone();
    let id = id.rsplit('/').next().unwrap();
    let long = "k".repeat(600);
    for endpoint in all.iter().filter(|e| e.name.contains("{id}")) {
        for (name, status, code) in [
            ("0192f0c1-2345-7000-8000-000000000000", 404, "not_found"),
            ("no-such-key", 404, "not_found"),
            ("org%2Frepo%232", 404, "not_found"),
            ("a%00b", 400, "bad_request"),
            ("%FF", 400, "bad_request"),
            (long.as_str(), 400, "bad_request"),
        ] {
            let path = endpoint.path.replace(id, name);
            let body = (endpoint.method == Method::POST).then_some(&endpoint.body);
            let (got, reply) = node.send(endpoint.method.clone(), &path, None, body).await;
            crate::support::api::is_error(&path, got, &reply, status, code);
        }
    }
    for (name, status, code) in [
        ("0192f0c1-2345-7000-8000-000000000000", 404, "not_found"),
        ("no-such-key", 404, "not_found"),
        ("a\0b", 400, "bad_request"),
        (long.as_str(), 400, "bad_request"),
    ] {
        let mut body = all.iter().find(|e| e.name == "/api/v1/receipts").unwrap().body.clone();
        body["task_id"] = json!(name);
        let (got, reply) = node.post("/api/v1/receipts", body).await;
        crate::support::api::is_error(&format!("receipt for {name:?}"), got, &reply, status, code);
    }
    for path in ["/api/v1/agents/nobody", "/api/v1/agents/a%00", "/api/v1/agents/%FF"] {
        let (got, reply) = node.get(path).await;
        crate::support::api::is_error(path, got, &reply, 404, "not_found");
    }
    unharmed(&db, &node, &before).await;
    node.stop().await;
}

#[tokio::test]
async fn bad_parameters_of_lists() {
    let (db, node, all) = stage().await;
    let before = fingerprint(&db).await;
    let id = &all.iter().find(|e| e.name.ends_with("/{id}")).unwrap().path;
    let lists = ["/api/v1/tasks", "/api/v1/agents", "/api/v1/hosts", "/api/v1/events"];
    let bad_limits = ["0", "-1", "501", "x", "1.5", "99999999999999999999", "%00", "%FF"];
    let mut bad: Vec<(String, &str, String)> = Vec::new();
    for list in lists {
        for value in bad_limits {
            bad.push((list.to_owned(), "limit", value.to_owned()));
        }
        bad.push((list.to_owned(), "cursor", "a%00".to_owned()));
        bad.push((list.to_owned(), "cursor", "%C3%28".to_owned()));
        bad.push((list.to_owned(), "cursor", "c".repeat(1_001)));
    }
    for name in ["status", "execution_mode", "source"] {
        bad.push((lists[0].to_owned(), name, "bogus".to_owned()));
    }
    for name in ["agent_id", "capability", "q"] {
        bad.push((lists[0].to_owned(), name, "%00".to_owned()));
        bad.push((lists[0].to_owned(), name, "%FF".to_owned()));
        bad.push((lists[0].to_owned(), name, "q".repeat(1_001)));
    }
    bad.push((lists[0].to_owned(), "cursor", "not-a-uuid".to_owned()));
    bad.push((lists[1].to_owned(), "status", "bogus".to_owned()));
    bad.push((lists[1].to_owned(), "capability", "%00".to_owned()));
    for value in ["-1", "x", "99999999999999999999", "1e3", "9223372036854775807"] {
        bad.push((lists[3].to_owned(), "after", value.to_owned()));
    }
    for (name, value) in
        [("lease", "-1"), ("lease", "x"), ("offset", "-1"), ("offset", "99999999999999999999")]
    {
        bad.push((format!("{id}/logs"), name, value.to_owned()));
    }
    for (path, name, value) in bad {
        let what = format!("{path}?{name}={value}");
        let (status, body) = node.get(&what).await;
        let sentence = crate::support::api::is_error(&what, status, &body, 400, "bad_request");
        assert!(sentence.contains(name), "{what} is refused without a name: {sentence}");
    }
    // Huge, but numbers.
    let far = format!("{id}/logs?offset=9223372036854775807&lease=9223372036854775807");
    let (status, page) = node.get(&far).await;
    assert_eq!((status, &page["items"]), (StatusCode::OK, &json!([])));
    // Empty counts as absent, unknown ones are ignored.
    let (status, page) = node.get("/api/v1/tasks?limit=&status=&what=ever&&=").await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{page}");
    assert_eq!(page["next_cursor"], Value::Null);
    unharmed(&db, &node, &before).await;
    node.stop().await;
}
