//! Clients that are slow, stuck or many: each costs its connection for a while, and others are served meanwhile.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    api::{Reply, request},
    db::Db,
    eventually,
    forge::Issue,
    node::Node,
    program::Serve,
};

/// A connection on which these bytes have been sent.
async fn sent(url: &str, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

fn poll_of(agent: &str) -> String {
    let body = json!({"agent_id": agent, "wait_secs": 50}).to_string();
    format!(
        "POST /api/v1/tasks/dequeue HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What the server still says before it closes; nothing when it has not by then.
async fn rest_or(mut stream: TcpStream, limit: Duration) -> Option<String> {
    let mut said = Vec::new();
    let reading = stream.read_to_end(&mut said);
    // However it is closed.
    let _ = tokio::time::timeout(limit, reading).await.ok()?;
    Some(String::from_utf8_lossy(&said).into_owned())
}

/// What the server still says before it closes.
async fn rest(stream: TcpStream) -> String {
    rest_or(stream, Duration::from_secs(30)).await.expect("it is closed")
}

/// How many connections of a server on this port neither side has closed.
fn established(port: u16) -> usize {
    let local = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of_server = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == "01"
    };
    table.lines().filter(of_server).count()
}

async fn get(node: &Node, path: &str) -> Reply {
    request(node, &Method::GET, path, &[], None).await
}

#[tokio::test]
async fn stuck_clients_are_ended_and_others_are_served_meanwhile() {
    let db = Db::new().await;
    let toml = "[server]\nclient_timeout = \"2s\"\nmax_requests = 4\n";
    let node = Node::start(&db, "r", toml).await;
    node.register("good", &[], 1).await;
    let mut heads = Vec::new();
    let mut bodies = Vec::new();
    for _ in 0..100 {
        heads.push(sent(&node.url, "POST /api/v1/tasks HTTP/1.1\r\nhost: localh").await);
        let head = "POST /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                    content-length: 100\r\n\r\n{\"title\": \"never";
        bodies.push(sent(&node.url, head).await);
    }
    // Far more than `max_requests` are stuck, and no request of others is refused.
    for n in 0..20 {
        let id = node.create(&format!("t{n}"), &[]).await;
        let task = node.dequeue("good", 10).await.unwrap();
        assert_eq!(task["task_id"], id.as_str());
        assert_eq!(node.complete(&task, "good").await.0, StatusCode::OK);
    }
    for head in heads {
        assert_eq!(rest(head).await, "", "half a head is no request");
    }
    for body in bodies {
        let said = rest(body).await;
        assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
        assert!(said.contains("\"code\":\"body_timeout\""), "{said}");
    }
    let titles = db.count("select count(*) from fleet.task_specs where title like 'never%'").await;
    assert_eq!(titles, 0);
    node.stop().await;
}

#[tokio::test]
async fn large_bodies_that_never_end_are_let_go_of_when_they_are_too_many() {
    let db = Db::new().await;
    // No time limit ends them.
    let node = Node::start(&db, "r", "[server]\nclient_timeout = \"1h\"\n").await;
    let length = 5 << 20;
    let head = format!(
        "POST /api/v1/webhooks/forgejo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
    );
    // 300 MB in all.
    let part = "x".repeat(length - 1);
    let mut stuck = Vec::new();
    for _ in 0..60 {
        let mut stream = sent(&node.url, &head).await;
        stuck.push(tokio::spawn({
            let part = part.clone();
            async move {
                let _ = stream.write_all(part.as_bytes()).await;
                rest_or(stream, Duration::from_secs(60)).await
            }
        }));
    }
    let first = futures_util::future::select_all(stuck).await;
    first.0.unwrap().expect("the one that has been at it longest is ended");
    Issue::new(1).delivery("opened").send(&node).await;
    first.2.iter().for_each(|other| other.abort());
    node.stop().await;
}

#[tokio::test]
async fn a_reply_that_is_never_read_costs_one_connection_for_a_while() {
    let db = Db::new().await;
    let toml = "[auth]\nmode = \"open\"\n[server]\nclient_timeout = \"1s\"\n";
    let mut serve = Serve::start(db.url(), "a", toml);
    serve.ready().await;
    let body = json!({"title": "t", "body": "x".repeat(1_000_000)});
    let http = reqwest::Client::new();
    let created = http.post(format!("{}/api/v1/tasks", serve.url)).json(&body);
    let task: serde_json::Value = created.send().await.unwrap().json().await.unwrap();
    drop(http);
    // More than the buffers between the two can hold, so that the server is stuck with the rest.
    let ask = format!(
        "GET /api/v1/tasks/{} HTTP/1.1\r\nhost: localhost\r\n\r\n",
        task["task_id"].as_str().unwrap()
    );
    let mut stuck = Vec::new();
    for _ in 0..10 {
        stuck.push(sent(&serve.url, &ask.repeat(30)).await);
    }
    let port = serve.url.rsplit_once(':').unwrap().1.parse().unwrap();
    eventually("all are served", async || (established(port) == 10).then_some(())).await;
    eventually("all are ended", async || (established(port) == 0).then_some(())).await;
    for mut stream in stuck {
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        assert!(said.len() < 30_000_000, "it was given all: {}", said.len());
    }
}

#[tokio::test]
async fn at_the_limit_of_connections_who_waits_longest_makes_room() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "[server]\nmax_connections = 8\n").await;
    let mut stuck = Vec::new();
    for _ in 0..60 {
        stuck.push(sent(&node.url, "GET /healthz HTTP/1.1\r\n").await);
    }
    // Of the stuck ones one goes for each that comes, long before its time limit of 30 s.
    eventually("a newcomer is served", async || {
        (get(&node, "/api/v1/tasks").await.status == StatusCode::OK).then_some(())
    })
    .await;
    drop(stuck);

    // Callers that wait for work make no room.
    node.register("waits", &[], 1).await;
    let mut polls = Vec::new();
    eventually("every connection polls", async || {
        polls.push(sent(&node.url, &poll_of("waits")).await);
        let reply = get(&node, "/api/v1/tasks").await;
        (reply.status == StatusCode::SERVICE_UNAVAILABLE).then(|| {
            reply.is_error("one too many", 503, "overloaded");
            assert_eq!(reply.headers["retry-after"], "2");
            assert_eq!(reply.headers["connection"], "close");
        })
    })
    .await;
    assert_eq!(get(&node, "/readyz").await.status, StatusCode::OK);
    Issue::new(1).delivery("opened").send(&node).await;
    drop(polls);
    eventually("there is room again", async || {
        (get(&node, "/api/v1/tasks").await.status == StatusCode::OK).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn an_agent_with_too_many_requests_is_told_so_and_others_are_not() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "[server]\nmax_requests_per_agent = 2\n").await;
    let token = node.register("many", &[], 1).await;
    node.register("other", &[], 1).await;
    let mut polls = Vec::new();
    let beat = json!({"agent_id": "many"}).to_string().into_bytes();
    let path = "/api/v1/agents/heartbeat";
    let json = ("content-type", "application/json");
    let bearer = format!("Bearer {token}");
    eventually("one more than two is refused", async || {
        polls.push(sent(&node.url, &poll_of("many")).await);
        let headers = [json, ("authorization", bearer.as_str())];
        let reply = request(&node, &Method::POST, path, &headers, Some(beat.clone())).await;
        (reply.status == StatusCode::TOO_MANY_REQUESTS).then(|| {
            let said = reply.is_error("one too many", 429, "too_many_requests");
            assert!(said.contains('2'), "{said}");
            assert_eq!(reply.headers["retry-after"], "1");
        })
    })
    .await;
    // The same on behalf of the agent, and not for another one.
    let reply = request(&node, &Method::POST, path, &[json], Some(beat.clone())).await;
    reply.is_error("by admin", 429, "too_many_requests");
    node.must(path, json!({"agent_id": "other"})).await;
    drop(polls);
    eventually("it is served again", async || {
        let reply = request(&node, &Method::POST, path, &[json], Some(beat.clone())).await;
        (reply.status == StatusCode::OK).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn with_as_many_requests_as_may_be_others_are_refused_but_not_polls_heartbeats_and_webhooks()
{
    let db = Db::new().await;
    let node = Node::start(&db, "r", "[server]\nmax_requests = 1\n").await;
    node.register("waits", &[], 1).await;
    let polls =
        [sent(&node.url, &poll_of("waits")).await, sent(&node.url, &poll_of("waits")).await];
    eventually("both wait", async || {
        (get(&node, "/api/v1/tasks").await.status == StatusCode::OK).then_some(())
    })
    .await;
    // One request that hangs on a lock.
    let blocker = db.connect().await;
    blocker.batch_execute("begin; lock table fleet.hosts in access exclusive mode").await.unwrap();
    let hanging = sent(&node.url, "GET /api/v1/hosts HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    eventually("the second is refused", async || {
        let reply = get(&node, "/api/v1/tasks").await;
        (reply.status == StatusCode::SERVICE_UNAVAILABLE).then(|| {
            reply.is_error("one too many", 503, "overloaded");
            assert_eq!(reply.headers["retry-after"], "2");
        })
    })
    .await;
    Issue::new(1).delivery("opened").send(&node).await;
    node.must("/api/v1/agents/heartbeat", json!({"agent_id": "waits"})).await;
    blocker.batch_execute("rollback").await.unwrap();
    eventually("it is served again", async || {
        (get(&node, "/api/v1/tasks").await.status == StatusCode::OK).then_some(())
    })
    .await;
    drop((polls, hanging));
    node.stop().await;
}

/// A replica with four connections and ten tasks for its one agent. A list of tasks takes until the gate beside it gives way, or for
/// 15 s; what is held and completed meanwhile is not touched by it.
async fn slow_lists(db: &Db) -> (Node, tokio_postgres::Client) {
    let node = Node::start(db, "r", "[database]\nmax_connections = 4\n").await;
    node.register("good", &[], 1).await;
    for n in 0..10 {
        node.create(&format!("t{n}"), &[]).await;
    }
    node.create("makes lists slow", &["agent:slow"]).await;
    db.execute(
        "create or replace function fleet.waiting_reason(status text, execution_mode text, holder uuid, required text[], lane_id bigint)
         returns text language plpgsql stable as $$
         begin
           while required = array['agent:slow'] and not pg_try_advisory_xact_lock_shared(42) loop
             perform pg_sleep(0.01);
           end loop;
           return null;
         end $$",
    )
    .await;
    let gate = db.connect().await;
    gate.execute("select pg_advisory_lock(42)", &[]).await.unwrap();
    (node, gate)
}

/// How many lists of tasks are being read.
async fn lists(db: &Db) -> i64 {
    db.count(
        "select count(*) from pg_stat_activity
          where datname = current_database() and state = 'active' and query like '-- Purpose: a page of tasks%'",
    )
    .await
}

/// Claims and completes these many tasks of those that are there, while one list of tasks is being read.
async fn work_beside_a_list(db: &Db, node: &Node, tasks: usize) {
    for n in 0..tasks {
        let task = node.dequeue("good", 0).await.unwrap();
        let (status, reply) = node.complete(&task, "good").await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        assert_eq!(lists(db).await, 1, "task {n} waited for the list");
    }
}

#[tokio::test]
async fn who_hangs_up_leaves_no_query_on_a_connection_of_others() {
    let db = Db::new().await;
    let (node, gate) = slow_lists(&db).await;
    let reader = sent(&node.url, "GET /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let (own, servers) = (reader.local_addr().unwrap().port(), reader.peer_addr().unwrap().port());
    eventually("the list is being read", async || (lists(&db).await == 1).then_some(())).await;
    drop(reader);
    eventually("the server has let go of its connection", async || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let is_open = table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1].ends_with(&format!(":{servers:04X}"))
                && fields[2].ends_with(&format!(":{own:04X}"))
                // established, or closed by the client alone
                && ["01", "08"].contains(&fields[3])
        });
        (!is_open).then_some(())
    })
    .await;
    work_beside_a_list(&db, &node, 10).await;
    gate.execute("select pg_advisory_unlock(42)", &[]).await.unwrap();
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn searches_leave_connections_to_others_and_those_too_many_are_told_to_come_back() {
    let db = Db::new().await;
    let (node, gate) = slow_lists(&db).await;
    let mut asked = FuturesUnordered::new();
    asked.push(get(&node, "/api/v1/tasks"));
    let seen = eventually("the list is being read", async || (lists(&db).await == 1).then_some(()));
    tokio::select! {
        () = seen => {}
        reply = asked.next() => panic!("{reply:?}"),
    }
    for n in 0..7 {
        asked.push(get(&node, if n % 2 == 0 { "/api/v1/tasks?q=t" } else { "/api/v1/stats" }));
    }
    let refused = async {
        for _ in 0..7 {
            let reply = asked.next().await.unwrap();
            reply.is_error("a search too many", 503, "unavailable");
            assert!(reply.headers.contains_key("retry-after"));
        }
    };
    tokio::join!(refused, work_beside_a_list(&db, &node, 10));
    gate.execute("select pg_advisory_unlock(42)", &[]).await.unwrap();
    assert_eq!(asked.next().await.unwrap().status, StatusCode::OK);
    drop(asked);
    db.check_history().await;
    node.stop().await;
}
