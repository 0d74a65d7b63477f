//! `/api/v1/tasks/{id}/logs`: output by byte offset.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    api::{fingerprint, is_error},
    db::Db,
    node::Node,
};

async fn append(node: &Node, task: &Value, offset: i64, data: &str) -> (StatusCode, Value) {
    let body = json!({"agent_id": "a", "lease": task["lease"], "offset": offset, "data": data});
    node.post(&format!("/api/v1/tasks/{}/logs", task["task_id"].as_str().unwrap()), body).await
}

async fn read(node: &Node, task: &Value, query: &str) -> Value {
    let (status, page) =
        node.get(&format!("/api/v1/tasks/{}/logs{query}", task["task_id"].as_str().unwrap())).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    page
}

fn text(page: &Value) -> String {
    page["items"].as_array().unwrap().iter().map(|i| i["data"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn output_grows_by_bytes_without_gap_or_repetition() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.create("t", &[]).await;
    let task = node.dequeue("a", 0).await.unwrap();
    let empty = json!({"items": [], "next_offset": 0, "done": false});
    assert_eq!(read(&node, &task, "").await, empty);
    let next = |offset: i64| (StatusCode::OK, json!({"next_offset": offset}));
    // Two bytes, three bytes, four bytes a character.
    assert_eq!(append(&node, &task, 0, "é€").await, next(5));
    assert_eq!(append(&node, &task, 5, "🚀\n").await, next(10));
    let before = fingerprint(&db).await;
    // An overlap stores nothing and answers the truth; so does nothing at all.
    for (offset, data) in [(0, "é€"), (5, "🚀\n"), (3, "other"), (9, "\nand more"), (10, "")] {
        assert_eq!(append(&node, &task, offset, data).await, next(10), "at {offset}");
    }
    for offset in [11, 1_000, i64::MAX] {
        let (status, reply) = append(&node, &task, offset, "late").await;
        let sentence = is_error("a gap", status, &reply, 400, "log_gap");
        assert!(sentence.contains("10"), "{sentence}");
    }
    assert_eq!(fingerprint(&db).await, before);
    assert_eq!(append(&node, &task, 10, "nul \0 too").await, next(19));
    let page = read(&node, &task, "").await;
    assert_eq!(text(&page), "é€🚀\nnul \0 too");
    assert_eq!((&page["next_offset"], &page["done"]), (&json!(19), &json!(false)));
    let first = &page["items"][0];
    assert_eq!(
        (&first["lease"], &first["attempt"], &first["offset"]),
        (&json!(1), &json!(1), &json!(0))
    );
    assert!(first["at"].is_string());
    // From within.
    let page = read(&node, &task, "?offset=5").await;
    assert_eq!((text(&page).as_str(), &page["items"][0]["offset"]), ("🚀\nnul \0 too", &json!(5)));
    let page = read(&node, &task, "?offset=9").await;
    assert_eq!(text(&page), "\nnul \0 too");
    let page = read(&node, &task, "?offset=19").await;
    assert_eq!(page, json!({"items": [], "next_offset": 19, "done": false}));
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn each_lease_has_output_of_its_own_and_an_end() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.create("t", &[]).await;
    let first = node.dequeue("a", 0).await.unwrap();
    append(&node, &first, 0, "first").await;
    let body = json!({"agent_id": "a", "lease": first["lease"], "status": "failed"});
    node.must(&format!("/api/v1/tasks/{}/complete", first["task_id"].as_str().unwrap()), body)
        .await;
    let page = read(&node, &first, "").await;
    assert_eq!((text(&page).as_str(), &page["done"]), ("first", &json!(true)));
    let (status, reply) = append(&node, &first, 5, "!").await;
    is_error("output after the receipt", status, &reply, 409, "lease_lost");

    let second = node.dequeue("a", 50).await.unwrap();
    assert_eq!((&second["task_id"], &second["lease"]), (&first["task_id"], &json!(2)));
    let (status, reply) = append(&node, &first, 5, "!").await;
    is_error("output under the old lease", status, &reply, 409, "lease_lost");
    assert_eq!(append(&node, &second, 0, "second").await.0, StatusCode::OK);
    let page = read(&node, &second, "").await;
    assert_eq!((text(&page).as_str(), &page["done"]), ("second", &json!(false)));
    assert_eq!(page["items"][0]["attempt"], 2);
    let page = read(&node, &second, "?lease=1").await;
    assert_eq!((text(&page).as_str(), &page["done"]), ("first", &json!(true)));
    assert_eq!(node.complete(&second, "a").await.0, StatusCode::OK);
    assert_eq!(read(&node, &second, "").await["done"], true);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn much_output_is_read_page_by_page() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.create("t", &[]).await;
    let task = node.dequeue("a", 0).await.unwrap();
    let mut whole = String::new();
    for n in 0..150 {
        let line = format!("line {n} é\n");
        let offset = i64::try_from(whole.len()).unwrap();
        assert_eq!(append(&node, &task, offset, &line).await.0, StatusCode::OK);
        whole.push_str(&line);
    }
    assert_eq!(node.complete(&task, "a").await.0, StatusCode::OK);
    let (mut got, mut offset) = (String::new(), 0);
    for _ in 0..10 {
        let page = read(&node, &task, &format!("?offset={offset}")).await;
        got.push_str(&text(&page));
        offset = page["next_offset"].as_i64().unwrap();
        if page["done"] == true {
            break;
        }
    }
    assert_eq!(got, whole);
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn a_page_of_large_chunks_is_bounded_by_bytes() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.create("t", &[]).await;
    let task = node.dequeue("a", 0).await.unwrap();
    const MIB: usize = 1 << 20;
    let mut whole = String::new();
    // The last ones are more than a page each; of those before, some share one.
    for (n, size) in [2 * MIB, MIB, 2 * MIB, 1, 9 * MIB / 2, 9 * MIB / 2].into_iter().enumerate() {
        let offset = i64::try_from(whole.len()).unwrap();
        let chunk = n.to_string().repeat(size);
        assert_eq!(append(&node, &task, offset, &chunk).await.0, StatusCode::OK, "{n}");
        whole.push_str(&chunk);
    }
    assert_eq!(node.complete(&task, "a").await.0, StatusCode::OK);
    let (mut got, mut offset, mut chunks) = (String::new(), 0, Vec::new());
    loop {
        let page = read(&node, &task, &format!("?offset={offset}")).await;
        got.push_str(&text(&page));
        chunks.push(page["items"].as_array().unwrap().len());
        offset = page["next_offset"].as_i64().unwrap();
        if page["done"] == true || chunks.len() == 10 {
            break;
        }
    }
    assert_eq!(chunks, [2, 2, 1, 1]);
    assert!(got == whole, "{} of {} bytes", got.len(), whole.len());
    // From within a chunk, what is before counts for nothing; beyond the end is nothing.
    let page = read(&node, &task, &format!("?offset={}", 2 * MIB - 1)).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 4);
    let page = read(&node, &task, &format!("?offset={}", i64::MAX)).await;
    assert_eq!((&page["items"], &page["done"]), (&json!([]), &json!(true)));
    db.check_history().await;
    node.stop().await;
}

/// Output of a host is cut where it comes, and old chunks are gone one day.
#[tokio::test]
async fn a_page_goes_on_behind_a_part_of_a_character_and_behind_a_gap() {
    let db = Db::new().await;
    let node = Node::start(&db, "r1", "").await;
    node.register("a", &[], 1).await;
    node.create("t", &[]).await;
    let task = node.dequeue("a", 0).await.unwrap();
    assert_eq!(node.complete(&task, "a").await.0, StatusCode::OK);
    let start = 10 << 20;
    for (offset, data) in [
        (start, "'\\xf0'::bytea"),
        (start + 1, "'\\x9f9a'::bytea"),
        (start + 3, "'\\x80'::bytea || repeat('x', 5000000)::bytea"),
        (start + 5_000_004, "'end'::bytea"),
    ] {
        db.execute(&format!(
            "insert into fleet.task_logs (task_id, lease, attempt, \"offset\", data)
             select task_id, lease, attempt, {offset}, {data} from fleet.tasks",
        ))
        .await;
    }
    let first = read(&node, &task, "").await;
    assert!(text(&first).starts_with("🚀x"), "{}", first["next_offset"]);
    assert_eq!((&first["next_offset"], &first["done"]), (&json!(start + 5_000_004), &json!(false)));
    let second = read(&node, &task, &format!("?offset={}", first["next_offset"])).await;
    assert_eq!((text(&second).as_str(), &second["done"]), ("end", &json!(true)));
    node.stop().await;
}
