//! Server-sent events: what is committed arrives once and in order, also over a broken connection.

use std::time::Duration;

use reqwest::Response;
use serde_json::{Value, json};

use crate::support::{db::Db, node::Node};

/// One event of a stream.
#[derive(Debug, PartialEq)]
struct Sent {
    event: String,
    id: String,
    data: Value,
}

struct Stream {
    response: Response,
    buffer: String,
}

impl Stream {
    async fn open(node: &Node, path: &str, last_event_id: Option<&str>) -> Self {
        let mut request = reqwest::Client::new().get(format!("{}{path}", node.url));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, buffer: String::new() }
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Sent> {
        let read = async {
            loop {
                if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                    let field = |name: &str| {
                        block
                            .lines()
                            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
                            .unwrap_or("")
                            .trim()
                    };
                    let sent = Sent {
                        event: field("event").to_owned(),
                        id: field("id").to_owned(),
                        data: serde_json::from_str(field("data")).unwrap_or_default(),
                    };
                    self.buffer = rest.to_owned();
                    if !sent.event.is_empty() {
                        return Some(sent);
                    }
                    continue;
                }
                match self.response.chunk().await.unwrap() {
                    Some(chunk) => self.buffer.push_str(std::str::from_utf8(&chunk).unwrap()),
                    None => return None,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("an event in time")
    }
}

#[tokio::test]
async fn events_are_followed_from_now_and_from_a_place() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.create("before", &[]).await;
    let mut stream = Stream::open(&node, "/api/v1/events/stream", None).await;
    let first = node.create("first", &[]).await;
    let second = node.create("second", &[]).await;
    let seen = stream.next().await.unwrap();
    assert_eq!((seen.event.as_str(), &seen.data["task_id"]), ("created", &json!(first)));
    assert_eq!(seen.id, seen.data["event_id"].to_string());
    drop(stream);
    // Elsewhere, later: nothing is sent twice, nothing is skipped.
    let other = Node::start(&db, "r2", "").await;
    let mut stream = Stream::open(&other, "/api/v1/events/stream", Some(&seen.id)).await;
    assert_eq!(stream.next().await.unwrap().data["task_id"], json!(second));
    let third = node.create("third", &[]).await;
    assert_eq!(stream.next().await.unwrap().data["task_id"], json!(third));
    // A replica that stops ends its streams.
    other.replica.shutdown.trigger();
    assert_eq!(stream.next().await, None);
    let refused = reqwest::Client::new()
        .get(format!("{}/api/v1/events/stream", node.url))
        .header("Last-Event-ID", "nonsense")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 400);
    other.stop().await;
    node.stop().await;
}

#[tokio::test]
async fn an_event_that_commits_late_is_not_skipped() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    let mut stream = Stream::open(&node, "/api/v1/events/stream", None).await;
    let late = node.create("late", &[]).await;
    assert_eq!(stream.next().await.unwrap().data["task_id"], json!(late));
    let mut slow = db.connect().await;
    let tx = slow.transaction().await.unwrap();
    tx.execute(
        "insert into fleet.task_events (task_id, type, actor) values ($1::text::uuid, 'updated', 'operator:test')",
        &[&late],
    )
    .await
    .unwrap();
    let after = node.create("after", &[]).await;
    let early = tokio::time::timeout(Duration::from_millis(2_500), stream.next()).await;
    assert!(early.is_err(), "an event overtook one that had begun before it: {early:?}");
    tx.commit().await.unwrap();
    assert_eq!(stream.next().await.unwrap().event, "updated");
    assert_eq!(stream.next().await.unwrap().data["task_id"], json!(after));
    node.stop().await;
}

#[tokio::test]
async fn output_is_followed_to_its_end() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    let id = node.create("t", &[]).await;
    let task = node.dequeue("a", 5).await.unwrap();
    let append = async |offset: usize, data: &str| {
        let body = json!({"agent_id": "a", "lease": task["lease"], "offset": offset, "data": data});
        node.must(&format!("/api/v1/tasks/{id}/logs"), body).await
    };
    append(0, "one\n").await;
    let path = format!("/api/v1/tasks/{id}/logs/stream");
    let mut stream = Stream::open(&node, &path, None).await;
    let first = stream.next().await.unwrap();
    assert_eq!((first.event.as_str(), first.id.as_str()), ("log", "1:4"));
    assert_eq!(first.data["data"], "one\n");
    append(4, "two é\n").await;
    assert_eq!(stream.next().await.unwrap().data["data"], "two é\n");
    drop(stream);
    let mut stream = Stream::open(&node, &path, Some(&first.id)).await;
    assert_eq!(stream.next().await.unwrap().data["data"], "two é\n");
    node.complete(&task, "a").await;
    assert_eq!(stream.next().await.unwrap().event, "done");
    assert_eq!(stream.next().await, None);
    node.stop().await;
}
