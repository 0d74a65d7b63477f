//! The webhook's door: who is let in, what is taken, what is told.

use std::{fs, path::Path};

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::{
    db::Db,
    forge::{Issue, SECRET, post, sign},
    node::Node,
};

#[tokio::test]
async fn only_what_is_signed_with_the_secret_is_let_in() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    let delivery = Issue::new(42).delivery("opened");
    let good = &*sign(SECRET, &delivery.body);
    let (f, g, h) = ("x-forgejo-signature", "x-gitea-signature", "x-hub-signature-256");
    let prefixed = &*format!("sha256={good}");
    let wrong = &*sign("another", &delivery.body);
    let longer = format!("{good}00");
    let refused: &[&[(&str, &str)]] = &[
        &[],
        &[(f, "")],
        &[(f, ""), (g, ""), (h, "")],
        &[(f, &good[..62])],
        &[(f, &good[..63])],
        &[(f, &longer)],
        &[(f, "sha256=")],
        &[(f, "not hex at all")],
        &[(f, wrong)],
        // The first that is present decides.
        &[(f, wrong), (g, good), (h, prefixed)],
        &[(g, wrong), (h, prefixed)],
        // SHA-1 is not asked.
        &[("x-hub-signature", good)],
        &[("x-gogs-signature", good)],
        &[(f, &*sign("", &delivery.body))],
    ];
    for headers in refused {
        let (status, reply) = delivery.send_with(&node, headers).await;
        let told = (status, reply["code"].as_str());
        assert_eq!(told, (StatusCode::UNAUTHORIZED, Some("bad_signature")), "{headers:?}");
    }
    assert_eq!(db.count("select count(*) from fleet.webhook_deliveries").await, 0);
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 0);

    let upper = good.to_uppercase();
    let accepted: &[&[(&str, &str)]] = &[
        &[(f, good)],
        &[(f, prefixed)],
        &[(f, &upper)],
        &[(g, good)],
        &[(h, prefixed)],
        &[(h, good)],
        &[(f, ""), (g, good)],
        &[(f, good), (g, wrong), (h, wrong)],
    ];
    for (place, headers) in accepted.iter().enumerate() {
        let (status, reply) = delivery.send_with(&node, headers).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{headers:?}: {reply}");
        assert_eq!(reply["result"], if place == 0 { "created" } else { "duplicate" });
        assert_eq!(reply["delivery_id"], delivery.id);
        assert!(reply["task_id"].is_string(), "{reply}");
    }
    // One changed byte.
    let mut changed = delivery.clone();
    *changed.body.last_mut().unwrap() = b' ';
    assert_eq!(changed.send_with(&node, &[(f, good)]).await.0, StatusCode::UNAUTHORIZED);
    node.stop().await;
}

#[tokio::test]
async fn without_a_secret_nobody_is_let_in() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "[forgejo]\nwebhook_secret = []\n").await;
    let delivery = Issue::new(42).delivery("opened");
    for secret in ["", SECRET] {
        let signature = sign(secret, &delivery.body);
        let (status, reply) =
            delivery.send_with(&node, &[("x-forgejo-signature", &signature)]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply["code"], "webhook_not_configured");
    }
    let (status, _) = delivery.send_with(&node, &[]).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    node.stop().await;
}

#[tokio::test]
async fn two_secrets_while_one_is_rotated() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "[forgejo]\nwebhook_secret = [\"new\", \"old\"]\n").await;
    for (number, secret, status) in [
        (1, "new", StatusCode::ACCEPTED),
        (2, "old", StatusCode::ACCEPTED),
        (3, "older", StatusCode::UNAUTHORIZED),
    ] {
        let delivery = Issue::new(number).delivery("opened");
        let signature = sign(secret, &delivery.body);
        let sent = delivery.send_with(&node, &[("x-forgejo-signature", &signature)]).await;
        assert_eq!(sent.0, status, "{secret}");
    }
    node.stop().await;
}

#[tokio::test]
async fn what_is_no_json_delivery_is_refused_with_its_reason() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    let (status, reply) = node.send(Method::GET, "/api/v1/webhooks/forgejo", None, None).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{reply}");
    assert!(reply["code"].is_string() && reply["error"].is_string(), "{reply}");

    let mut delivery = Issue::new(42).delivery("opened");
    let json = delivery.body.clone();
    // Forgejo's other content type: the JSON as a form's field.
    delivery.body = b"payload=%7B%7D".to_vec();
    let form = "application/x-www-form-urlencoded";
    let signature = sign(SECRET, &delivery.body);
    let headers = [("x-forgejo-signature", &*signature), ("content-type", form)];
    assert_eq!(delivery.send_with(&node, &headers).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);

    for malformed in ["", "{", "[]", "null", "\"x\"", "{\"action\": 7}", "{\"action\":\"opened\"}"]
    {
        delivery.body = malformed.as_bytes().to_vec();
        let signature = sign(SECRET, &delivery.body);
        let (status, reply) =
            delivery.send_with(&node, &[("x-forgejo-signature", &signature)]).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{malformed}: {reply}");
        // Not signed, it is not looked at.
        let (status, _) = delivery.send_with(&node, &[]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{malformed}");
    }
    // The same id with a proper body is still taken: what was refused left no trace.
    delivery.body = json;
    assert_eq!(delivery.send(&node).await["result"], "created");
    node.stop().await;
}

#[tokio::test]
async fn five_mebibytes_are_the_limit() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    const LIMIT: usize = 5 << 20;
    let small = Issue::new(1).body("").delivery("opened").body.len();
    let fits = Issue::new(1).body(&"x".repeat(LIMIT - small)).delivery("opened");
    assert_eq!(fits.body.len(), LIMIT);
    assert_eq!(fits.send(&node).await["result"], "created");
    let over = Issue::new(2).body(&"x".repeat(LIMIT - small + 1)).delivery("opened");
    let signature = sign(SECRET, &over.body);
    let (status, reply) = over.send_with(&node, &[("x-forgejo-signature", &signature)]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{reply}");
    node.stop().await;
}

#[tokio::test]
async fn other_events_are_taken_and_ignored() {
    let db = Db::new().await;
    let node = Node::start(&db, "a", "").await;
    for event in ["push", "issue_comment", "pull_request", "release", "no_such_event", ""] {
        let mut delivery = Issue::new(42).delivery("opened");
        delivery.event = event.to_owned();
        let signature = sign(SECRET, &delivery.body);
        let headers = [("x-forgejo-signature", &*signature), ("x-forgejo-event", event)];
        let (status, reply) = delivery.send_with(&node, &headers).await;
        assert_eq!(
            (status, &reply["result"]),
            (StatusCode::ACCEPTED, &"ignored".into()),
            "{event}"
        );
        let (_, reply) = delivery.send_with(&node, &headers).await;
        assert_eq!(reply["result"], "duplicate", "{event}");
    }
    for action in ["assigned", "milestoned", "no_such_action", ""] {
        assert_eq!(Issue::new(42).send(action, &node).await["result"], "ignored", "{action}");
    }
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 0);
    node.stop().await;
}

#[tokio::test]
async fn only_repositories_of_the_list_are_heard() {
    let db = Db::new().await;
    let repos =
        "[forgejo]\nwebhook_secret = [\"webhook-secret\"]\nrepos = [\"org/*\", \"me/one\"]\n";
    let node = Node::start(&db, "a", repos).await;
    for (repo, result) in [
        ("org/repo", "created"),
        ("ORG/other", "created"),
        ("me/one", "created"),
        ("me/one-more", "ignored"),
        ("me/two", "ignored"),
        ("org2/repo", "ignored"),
    ] {
        let reply = Issue::new(7).repo(repo).send("opened", &node).await;
        assert_eq!(reply["result"], result, "{repo}: {reply}");
    }
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 3);
    node.stop().await;
}

/// What a folder of recorded deliveries is answered with; each is sent as it was recorded, then once more.
async fn replay(folder: &Path, secret_of: impl Fn(&str) -> Option<&'static str>) -> usize {
    let mut sent = 0;
    let db = Db::new().await;
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".headers.json").map(str::to_owned))
        .collect();
    names.sort();
    for name in names {
        let secret = secret_of(&name);
        let node = Node::start(
            &db,
            "a",
            &format!("[forgejo]\nwebhook_secret = [\"{}\"]\n", secret.unwrap_or("unknown")),
        )
        .await;
        let headers: serde_json::Map<String, Value> =
            serde_json::from_slice(&fs::read(folder.join(format!("{name}.headers.json"))).unwrap())
                .unwrap();
        let mut headers: Vec<(&str, String)> = headers
            .iter()
            .filter(|(header, _)| !["host", "content-length"].contains(&&*header.to_lowercase()))
            .map(|(header, value)| (header.as_str(), value.as_str().unwrap().to_owned()))
            .collect();
        let body = fs::read(folder.join(format!("{name}.json"))).unwrap();
        let (status, reply) = post(&node.url, &headers, body.clone()).await;
        let expected =
            if secret.is_some() { StatusCode::ACCEPTED } else { StatusCode::UNAUTHORIZED };
        assert_eq!(status, expected, "{name}: {reply}");
        // Signed anew, all are taken, and none a second time.
        headers.retain(|(header, _)| !header.to_lowercase().contains("signature"));
        headers.push(("x-gitea-signature", sign(secret.unwrap_or("unknown"), &body)));
        let (status, reply) = post(&node.url, &headers, body.clone()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{name}: {reply}");
        let (status, reply) = post(&node.url, &headers, body).await;
        assert_eq!((status, &reply["result"]), (StatusCode::ACCEPTED, &"duplicate".into()));
        node.stop().await;
        sent += 1;
    }
    db.check_history().await;
    sent
}

#[tokio::test]
async fn own_recorded_deliveries_pass_as_they_are() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/forgejo");
    assert_eq!(replay(&folder, |_| Some("sign-only-these-fixtures")).await, 9);
}

#[tokio::test]
async fn deliveries_of_real_forges_pass_when_they_are_at_hand() {
    // Beside the main checkout, or beside the folder of worktrees.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = ["../shared/payloads", "../../shared/payloads"].map(|p| root.join(p));
    let Some(folder) = found.iter().find(|folder| folder.exists()) else {
        println!("skipped: ../shared/payloads is not there");
        return;
    };
    let secret = |name: &str| {
        name.starts_with("go-playground-gitea__")
            .then_some("IsWishesWereHorsesWedAllBeEatingSteak!")
    };
    assert!(replay(folder, secret).await > 0);
}
