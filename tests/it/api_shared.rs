//! Many at once over HTTP: several tasks of one dequeue, receipts in arrays, the next task with a receipt, and requests
//! that are sent again.

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{api::is_error, db::Db, eventually, node::Node};

fn receipt(task: &Value, agent_id: &str, summary: &str) -> Value {
    json!({"task_id": task["task_id"], "agent_id": agent_id, "lease": task["lease"], "status": "completed",
           "duration_seconds": 1, "summary": summary, "artifacts": []})
}

async fn create_many(node: &Node, count: usize) {
    let tasks: Vec<Value> = (0..count).map(|n| json!({"title": format!("t{n}")})).collect();
    node.must("/api/v1/tasks", json!(tasks)).await;
}

async fn dequeue(node: &Node, body: Value) -> Vec<Value> {
    let (status, reply) = node.post("/api/v1/tasks/dequeue", body).await;
    match status {
        StatusCode::OK => reply["tasks"].as_array().unwrap().clone(),
        StatusCode::NO_CONTENT => Vec::new(),
        other => panic!("{other} {reply}"),
    }
}

/// `complete?dequeue=true`; the reply.
async fn cycle(node: &Node, task: &Value, agent_id: &str) -> Value {
    let id = task["task_id"].as_str().unwrap();
    let path = format!("/api/v1/tasks/{id}/complete?dequeue=true");
    node.must(&path, receipt(task, agent_id, "done")).await
}

#[tokio::test]
async fn a_dequeue_takes_as_many_as_it_asks_for_and_the_agent_has_slots_for() {
    let db = Db::new().await;
    let (one, two) = (Node::start(&db, "r1", "").await, Node::start(&db, "r2", "").await);
    create_many(&one, 12).await;
    one.register("a", &[], 8).await;
    let first = dequeue(&one, json!({"agent_id": "a", "max_tasks": 5})).await;
    let titles: Vec<&str> = first.iter().map(|t| t["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["t0", "t1", "t2", "t3", "t4"], "the oldest first");
    let second = dequeue(&two, json!({"agent_id": "a", "max_tasks": 100})).await;
    assert_eq!(second.len(), 3, "eight slots over both replicas");
    assert!(dequeue(&one, json!({"agent_id": "a", "max_tasks": 1})).await.is_empty());
    for bad in [json!(0), json!(101), json!(-1)] {
        let body = json!({"agent_id": "a", "max_tasks": bad});
        let (status, reply) = one.post("/api/v1/tasks/dequeue", body).await;
        is_error("max_tasks", status, &reply, 400, "bad_request");
    }
    db.check_history().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn receipts_of_an_array_are_judged_each_on_its_own_and_committed_together() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 10).await;
    create_many(&node, 4).await;
    let tasks = dequeue(&node, json!({"agent_id": "a", "max_tasks": 4})).await;
    let mut wrong_lease = receipt(&tasks[1], "a", "done");
    wrong_lease["lease"] = json!(7);
    let mut unknown = receipt(&tasks[1], "a", "done");
    unknown["task_id"] = json!("no/such#1");
    let mut nul = receipt(&tasks[1], "a", "done");
    nul["summary"] = json!("x\u{0}");
    let array = json!([
        receipt(&tasks[0], "a", "done"),
        wrong_lease,
        unknown,
        nul,
        receipt(&tasks[2], "a", "done"),
        // The same again, and another one for the same lease.
        receipt(&tasks[0], "a", "done"),
        receipt(&tasks[2], "a", "changed my mind"),
        {"task_id": tasks[3]["task_id"]},
        7,
    ]);
    let reply = node.must("/api/v1/receipts", array).await;
    let results = reply["results"].as_array().unwrap();
    let told: Vec<&str> =
        results.iter().map(|r| r["status"].as_str().or(r["code"].as_str()).unwrap()).collect();
    assert_eq!(
        told,
        [
            "completed",
            "lease_lost",
            "not_found",
            "bad_request",
            "completed",
            "completed",
            "lease_lost",
            "bad_request",
            "bad_request"
        ]
    );
    assert_eq!(results[2]["task_id"], "no/such#1");
    assert_eq!(results[0]["task_id"], tasks[0]["task_id"]);
    let stored = "select count(*) from fleet.receipts where body ->> 'summary' = 'done'";
    assert_eq!(db.count(stored).await, 2);
    let together = "select count(distinct xid) from fleet.task_events where type = 'completed'";
    assert_eq!(db.count(together).await, 1);
    assert_eq!(node.task(tasks[1]["task_id"].as_str().unwrap()).await["status"], "assigned");
    for many in [json!([]), json!(vec![receipt(&tasks[0], "a", "done"); 101])] {
        let (status, reply) = node.post("/api/v1/receipts", many).await;
        is_error("its size", status, &reply, 400, "bad_request");
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_receipt_brings_the_next_task_in_its_transaction_and_the_same_one_again() {
    let db = Db::new().await;
    let (one, two) = (Node::start(&db, "r1", "").await, Node::start(&db, "r2", "").await);
    one.register("a", &[], 1).await;
    create_many(&one, 3).await;
    let first = one.dequeue("a", 0).await.unwrap();
    let reply = cycle(&one, &first, "a").await;
    assert_eq!(reply["task"]["status"], "completed");
    assert_eq!(reply["task"], one_of(&one, &first).await, "as a GET has it");
    let second = &reply["next"];
    assert_eq!((&second["title"], &second["status"]), (&json!("t1"), &json!("assigned")));
    let commits = "select count(distinct xid) from fleet.task_events where type = 'completed' or type = 'claimed' and lease = 1
                     and task_id <> (select task_id from fleet.tasks order by seq limit 1)";
    assert_eq!(db.count(commits).await, 1, "one transaction");
    // Sent again, here and there: the same.
    for node in [&one, &two] {
        let again = cycle(node, &first, "a").await;
        assert_eq!(again["next"]["task_id"], second["task_id"]);
        assert_eq!(again["next"]["lease"], second["lease"]);
    }
    let reply = cycle(&two, second, "a").await;
    assert_eq!(reply["next"]["title"], "t2");
    assert_eq!(cycle(&one, &reply["next"], "a").await["next"], Value::Null);
    // A receipt that is refused brings nothing.
    one.create("t3", &[]).await;
    let mut lost = first.clone();
    lost["lease"] = json!(9);
    let path =
        format!("/api/v1/tasks/{}/complete?dequeue=true", first["task_id"].as_str().unwrap());
    let (status, reply) = one.post(&path, receipt(&lost, "a", "done")).await;
    is_error("a lost lease", status, &reply, 409, "lease_lost");
    eventually("nothing is held", async || {
        (db.count("select count(*) from fleet.tasks where holder is not null").await == 0)
            .then_some(())
    })
    .await;
    db.check_history().await;
    one.stop().await;
    two.stop().await;
}

/// Without what a list of tasks does not have.
async fn one_of(node: &Node, task: &Value) -> Value {
    let mut task = node.task(task["task_id"].as_str().unwrap()).await;
    for field in ["events", "receipts"] {
        task.as_object_mut().unwrap().remove(field);
    }
    task
}

#[tokio::test]
async fn the_same_request_again_is_answered_with_the_same_tasks_while_they_are_leased() {
    let db = Db::new().await;
    let (one, two) = (Node::start(&db, "r1", "").await, Node::start(&db, "r2", "").await);
    one.register("a", &[], 10).await;
    create_many(&one, 6).await;
    let body = json!({"agent_id": "a", "max_tasks": 2, "request_id": "q1"});
    let ids = |tasks: &[Value]| -> Vec<(String, i64)> {
        let mut ids: Vec<_> = tasks
            .iter()
            .map(|t| (t["task_id"].as_str().unwrap().to_owned(), t["lease"].as_i64().unwrap()))
            .collect();
        ids.sort();
        ids
    };
    let first = dequeue(&one, body.clone()).await;
    assert_eq!(first.len(), 2);
    for node in [&one, &two, &one] {
        assert_eq!(ids(&dequeue(node, body.clone()).await), ids(&first));
    }
    let mut waits = body.clone();
    waits["wait_secs"] = json!(20);
    assert_eq!(ids(&dequeue(&two, waits).await), ids(&first));
    let other = dequeue(&two, json!({"agent_id": "a", "max_tasks": 2, "request_id": "q2"})).await;
    assert!(ids(&other).iter().all(|id| !ids(&first).contains(id)));
    assert_eq!(one.complete(&first[0], "a").await.0, StatusCode::OK);
    assert_eq!(ids(&dequeue(&two, body.clone()).await), ids(&first[1..]), "what is leased of it");
    assert_eq!(db.count("select count(*) from fleet.tasks where holder is not null").await, 3);
    db.check_history().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_caller_who_left_before_the_next_task_came_leaves_no_task_leased() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 1).await;
    create_many(&node, 2).await;
    let first = node.dequeue("a", 0).await.unwrap();
    // The receipt waits for the task's row, and its caller does not.
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.query("select 1 from fleet.tasks order by seq limit 1 for update", &[]).await.unwrap();
    let address = node.url.strip_prefix("http://").unwrap();
    let body = receipt(&first, "a", "done").to_string();
    let request = format!(
        "POST /api/v1/tasks/{}/complete?dequeue=true HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        first["task_id"].as_str().unwrap(),
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    eventually("the receipt waits", async || {
        let waits = "select count(*) from pg_locks where not granted";
        (db.count(waits).await > 0).then_some(())
    })
    .await;
    drop(stream);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    tx.rollback().await.unwrap();
    // It was carried out, and what came with it went back as if never claimed.
    eventually("the next one is free again", async || {
        let free = "select count(*) from fleet.tasks where status = 'created' and attempt = 0 and lease = 1";
        (db.count(free).await == 1).then_some(())
    })
    .await;
    assert_eq!(db.count("select count(*) from fleet.tasks where status = 'completed'").await, 1);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_creation_hurts_none_that_arrive_with_it() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.must("/api/v1/tasks", json!({"title": "taken", "key": "k7"})).await;
    let requests = (0..40).map(|n| {
        let key = format!("k{}", n % 20);
        node.post("/api/v1/tasks", json!([{"title": "t", "key": key}, {"title": "free"}]))
    });
    let replies = join_all(requests).await;
    for (n, (status, reply)) in replies.iter().enumerate() {
        if n % 20 == 7 {
            assert_eq!(status.as_u16(), 409, "{n}: {reply}");
        } else {
            assert!(matches!(status.as_u16(), 201 | 409), "{n}: {reply}");
        }
    }
    // Nineteen keys, each made once with its companion; the second request of a key finds it in the way.
    let made = replies.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    assert_eq!(made, 19);
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 1 + 2 * 19);
    db.check_history().await;
    node.stop().await;
}

/// What comes of these requests, of which all but the first ones share a batch: while nobody gets at the tasks, they gather.
async fn gathered<T>(db: &Db, sending: impl Future<Output = T>) -> T {
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute("lock table fleet.tasks in exclusive mode").await.unwrap();
    let releasing = async {
        db.until_waiting(2).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        tx.rollback().await.unwrap();
    };
    tokio::join!(sending, releasing).0
}

/// Somebody cancels a task by hand and leaves the transaction open.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_somebody_has_locked_hurts_none_that_shares_its_batch() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 20).await;
    create_many(&node, 20).await;
    let tasks = dequeue(&node, json!({"agent_id": "a", "max_tasks": 20})).await;
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    let lock = format!(
        "select from fleet.tasks where task_id = '{}' for update",
        tasks[12]["task_id"].as_str().unwrap()
    );
    let receipts: Vec<Value> = tasks.iter().map(|task| receipt(task, "a", "done")).collect();
    let sending = join_all(receipts.into_iter().map(|body| node.post("/api/v1/receipts", body)));
    tx.batch_execute(&lock).await.unwrap();
    let replies = sending.await;
    for (n, (status, reply)) in replies.into_iter().enumerate() {
        if n == 12 {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
        } else {
            assert!(status.is_success(), "{n}: {status} {reply}");
        }
    }
    tx.rollback().await.unwrap();
    node.must("/api/v1/receipts", receipt(&tasks[12], "a", "done")).await;
    db.check_history().await;
    node.stop().await;
}

/// The same when an agent goes, or comes again without what it held.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_somebody_has_locked_keeps_no_agent_from_going_or_coming() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 20).await;
    create_many(&node, 20).await;
    let held = "select count(*) from fleet.tasks where holder is not null";
    for goes in [true, false] {
        let mut tasks = Vec::new();
        eventually("all are held", async || {
            tasks.extend(dequeue(&node, json!({"agent_id": "a", "max_tasks": 20})).await);
            (tasks.len() == 20).then_some(())
        })
        .await;
        let mut other = db.connect().await;
        let tx = other.transaction().await.unwrap();
        let id = tasks[12]["task_id"].as_str().unwrap();
        let lock = format!("select from fleet.tasks where task_id = '{id}' for update");
        tx.batch_execute(&lock).await.unwrap();
        if goes {
            node.must("/api/v1/agents/deregister", json!({"agent_id": "a"})).await;
        } else {
            node.register("a", &[], 20).await;
        }
        assert_eq!(db.count(held).await, 1, "all others are free");
        tx.rollback().await.unwrap();
        eventually("it is free, too", async || (db.count(held).await == 0).then_some(())).await;
        node.register("a", &[], 20).await;
    }
    db.check_history().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_releases_is_answered_also_when_one_before_it_in_its_batch_takes_the_task() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("fillers", &[], 20).await;
    node.register("b", &["agent:b"], 1).await;
    node.register("a", &["agent:b"], 1).await;
    let mut was_taken = false;
    for _ in 0..20 {
        create_many(&node, 6).await;
        let fillers = dequeue(&node, json!({"agent_id": "fillers", "max_tasks": 6})).await;
        for _ in 0..2 {
            node.create("t", &["agent:b"]).await;
        }
        let (of_b, of_a) =
            (node.dequeue("b", 0).await.unwrap(), node.dequeue("a", 0).await.unwrap());
        node.replica.store.ready_somewhere();
        let later = |turn: u32| tokio::time::sleep(std::time::Duration::from_millis(20) * turn);
        // One after the other, until as many batches are under way as there may be. The last two share the next one.
        let fill = join_all(fillers.iter().zip(0..).map(async |(task, turn)| {
            later(turn).await;
            node.must("/api/v1/receipts", receipt(task, "fillers", "done")).await
        }));
        let released = format!("/api/v1/tasks/{}/release", of_a["task_id"].as_str().unwrap());
        let release = json!({"agent_id": "a", "lease": of_a["lease"], "reason": "not mine"});
        let sending = async {
            let complete = async {
                later(8).await;
                cycle(&node, &of_b, "b").await
            };
            let release = async {
                later(10).await;
                node.post(&released, release).await
            };
            tokio::join!(fill, complete, release)
        };
        let (_, completed, (status, reply)) = gathered(&db, sending).await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        was_taken |= completed["next"]["task_id"] == of_a["task_id"];
        if was_taken {
            break;
        }
        let left = node.dequeue("a", 0).await.unwrap();
        assert_eq!(node.complete(&left, "a").await.0, StatusCode::OK);
    }
    assert!(was_taken, "it never came to it");
    db.check_history().await;
    node.stop().await;
}

/// What the database refuses fails its whole batch, which is then done again item by item.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_hurts_none_that_shares_its_batch() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 20).await;
    db.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin
           if to_jsonb(new)::text like '%poison%' then raise exception using errcode = '22000'; end if;
           return new; end $$;
         create trigger refuse before insert on fleet.task_specs for each row execute function refuse();
         create trigger refuse before insert on fleet.receipts for each row execute function refuse();",
    )
    .await;
    // The poison is in the midst of those that gather.
    let together = async |path: &str, bodies: Vec<Value>| {
        let sending = join_all(bodies.into_iter().map(|body| node.post(path, body)));
        let replies = gathered(&db, sending).await;
        for (n, (status, reply)) in replies.into_iter().enumerate() {
            if n == 12 {
                assert!(status.is_server_error(), "{status} {reply}");
            } else {
                assert!(status.is_success(), "{n}: {status} {reply}");
            }
        }
    };
    let title = |n: i32| if n == 12 { "poison" } else { "t" };
    together("/api/v1/tasks", (0..20).map(|n| json!({"title": title(n)})).collect()).await;
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 19);
    let tasks = dequeue(&node, json!({"agent_id": "a", "max_tasks": 19})).await;
    let receipts = tasks.iter().zip(0..).map(|(task, n)| receipt(task, "a", title(n))).collect();
    together("/api/v1/receipts", receipts).await;
    let done = "select count(*) from fleet.tasks where status = 'completed'";
    assert_eq!(db.count(done).await, 18);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn rows_that_arrive_by_plain_sql_wake_and_a_replicas_own_do_not_notify() {
    let db = Db::new().await;
    let store = db.store();
    let mut listener = store.listen().await.unwrap();
    crate::support::fleet::create(
        &store,
        crate::support::fleet::task(&[], agent_fleet::model::ExecutionMode::Undecided),
        1,
    )
    .await;
    db.execute("notify fleet_wake, 'after it'").await;
    assert_eq!(listener.next().await.unwrap(), "after it", "its own insert notified nobody");
    db.execute(
        "with made as (
           insert into fleet.tasks (key, lane_id) select 'sql', lane_id from fleet.lanes returning task_id)
         insert into fleet.task_specs (task_id, title) select task_id, 'by SQL' from made",
    )
    .await;
    assert_eq!(listener.next().await.unwrap(), "*");
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_that_arrive_together_hurt_and_help_nobody_else() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    node.register("a", &[], 20).await;
    create_many(&node, 20).await;
    let tasks = dequeue(&node, json!({"agent_id": "a", "max_tasks": 20})).await;
    // Each three times at once; every fourth task's lease is wrong all three times.
    let sent = tasks.iter().enumerate().flat_map(|(n, task)| {
        let mut body = receipt(task, "a", "done");
        if n % 4 == 0 {
            body["lease"] = json!(5);
        }
        std::iter::repeat_n((n, body), 3)
    });
    let replies = join_all(sent.map(|(n, body)| {
        let node = &node;
        async move { (n, node.post("/api/v1/receipts", body).await) }
    }))
    .await;
    for (n, (status, reply)) in replies {
        if n % 4 == 0 {
            is_error("a wrong lease", status, &reply, 409, "lease_lost");
        } else {
            assert_eq!((status.as_u16(), &reply["status"]), (200, &json!("completed")), "{reply}");
        }
    }
    assert_eq!(db.count("select count(*) from fleet.receipts").await, 15);
    let events = "select count(*) from fleet.task_events where type = 'completed'";
    assert_eq!(db.count(events).await, 15);
    db.check_history().await;
    node.stop().await;
}
