//! Output that is too much, none, or no text.

use serde_json::json;

use crate::support::{db::Db, host::SshHost, host::output};

#[tokio::test]
async fn of_too_much_output_the_beginning_is_kept_with_a_marked_cut() {
    // 256 MiB, and then its last words.
    let cli = "cat >/dev/null; yes 0123456789abcde | head -c 268435456; echo the very end";
    let host = SshHost::start(cli).await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let id = node.create("talks", &["agent:code"]).await;
    let task = node.until(&id, "completed").await;
    assert_eq!((&task["attempt"], host.starts()), (&json!(1), 1));
    assert!(task["summary"].as_str().unwrap().ends_with("the very end"), "{}", task["summary"]);
    let rows = db
        .rows(
            "select sum(length(data)), count(*) = count(distinct \"offset\"),
                    convert_from(string_agg(data, '' order by \"offset\"), 'UTF8') from fleet.task_logs",
            &[],
        )
        .await;
    let (bytes, distinct, text): (i64, bool, String) =
        (rows[0].get(0), rows[0].get(1), rows[0].get(2));
    let (kept, mark) = text.split_at(10 << 20);
    assert_eq!(mark, "\n[agent-fleet: the output is cut here; 10 MiB an attempt are kept]\n");
    assert!(distinct && bytes == (10 << 20) + mark.len() as i64);
    assert!(kept.lines().all(|line| line == "0123456789abcde"));
    db.check_history().await;
    node.stop().await;
}

#[tokio::test]
async fn silence_and_what_is_no_text_do_no_harm() {
    let host = SshHost::start(
        "cat >/dev/null; case $AGENT_FLEET_TASK_KEY in loud) printf 'a\\377\\000\\303(b\\n';; esac",
    )
    .await;
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    for (key, said) in [("quiet", ""), ("loud", "a\u{FFFD}\0\u{FFFD}(b\n")] {
        let body = json!({"title": "x", "labels": ["agent:code"], "key": key});
        node.must("/api/v1/tasks", body).await;
        let task = node.until(key, "completed").await;
        assert_eq!(task["attempt"], 1);
        if key == "quiet" {
            assert_eq!(output(&node, &task).await, said);
        } else {
            let path = format!("/api/v1/tasks/{}/logs", task["task_id"].as_str().unwrap());
            let (_, page) = node.get(&path).await;
            assert_eq!(page["items"][0]["data"], said);
            // Offsets count the bytes as they were.
            assert_eq!(page["next_offset"], 7);
        }
    }
    db.check_history().await;
    node.stop().await;
}
