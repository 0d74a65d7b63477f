//! Everything at once: issues at several replicas, a host and agents that race for them, a replica that stops.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{db::Db, eventually, forge::Issue, host::SshHost, node::Node};

const ISSUES: i64 = 24;
const COMPLETED: &str = "select count(*) from fleet.tasks where status = 'completed'";

/// Pulls and completes until told to stop; the keys of what it did.
async fn work(node: Arc<Node>, agent_id: &'static str, db: Arc<Db>) -> Vec<String> {
    let mut done = Vec::new();
    while db.count(COMPLETED).await < ISSUES {
        let Some(task) = node.dequeue(agent_id, 1).await else { continue };
        let (status, reply) = node.complete(&task, agent_id).await;
        assert!(status.is_success(), "{reply}");
        done.push(task["key"].as_str().unwrap().to_owned());
    }
    done
}

#[tokio::test]
async fn every_issue_is_done_once_whoever_takes_it() {
    let host = SshHost::start("cat >/dev/null; echo ran").await;
    let db = Arc::new(Db::new().await);
    // One of them will stop in the middle.
    let leaving = host.node(&db, "leaving", "").await;
    let staying = Arc::new(host.node(&db, "staying", "").await);
    for agent_id in ["one", "two"] {
        staying.register(agent_id, &["agent:code"], 1).await;
    }
    let mut sending = JoinSet::new();
    for number in 1..=ISSUES {
        let first = Issue::new(number).delivery("opened");
        let second = Issue::new(number).at(1).delivery("label_updated");
        let staying = Arc::clone(&staying);
        let through_leaving = if number % 2 == 0 { Some(first.send(&leaving).await) } else { None };
        sending.spawn(async move {
            if through_leaving.is_none() {
                first.send(&staying).await;
            }
            second.send(&staying).await;
            first.replayed().send(&staying).await;
        });
    }
    let mut workers = JoinSet::new();
    for agent_id in ["one", "two"] {
        // Slow enough for the host to have its share.
        eventually("the host has taken something", async || (host.starts() > 0).then_some(()))
            .await;
        workers.spawn(work(Arc::clone(&staying), agent_id, Arc::clone(&db)));
    }
    leaving.stop().await;
    sending.join_all().await;
    let pulled = workers.join_all().await.concat();

    let started = std::fs::read_to_string(host.file("starts")).unwrap();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for key in pulled.iter().map(String::as_str).chain(started.lines()) {
        *times.entry(key).or_default() += 1;
    }
    assert_eq!(times.len(), usize::try_from(ISSUES).unwrap());
    assert!(times.values().all(|count| *count == 1), "{times:?}");
    assert_eq!(db.count("select count(*) from fleet.tasks").await, ISSUES);
    for number in 1..=ISSUES {
        let task = staying.task(&format!("org/repo#{number}")).await;
        let ended = (&task["status"], &task["retry_count"]);
        assert_eq!(ended, (&json!("completed"), &json!(0)), "{task}");
        assert_eq!(task["receipts"].as_array().map(Vec::len), Some(1), "{task}");
        let completed = |event: &&Value| event["type"] == "completed";
        assert_eq!(task["events"].as_array().unwrap().iter().filter(completed).count(), 1);
    }
    db.check_history().await;
    Arc::into_inner(staying).unwrap().stop().await;
}
