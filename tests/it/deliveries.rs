//! Deliveries come twice, at once, and in any order.

use std::sync::Arc;

use futures_util::future::join_all;
use rand::seq::SliceRandom as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{sync::Barrier, task::JoinSet};

use crate::support::{
    db::Db,
    eventually,
    forge::{Delivery, Issue},
    node::Node,
};

/// Two replicas on one database.
async fn replicas() -> (Db, [Arc<Node>; 2]) {
    let db = Db::new().await;
    let nodes = [Node::start(&db, "a", "").await, Node::start(&db, "b", "").await];
    (db, nodes.map(Arc::new))
}

async fn end(db: Db, nodes: [Arc<Node>; 2]) {
    db.check_history().await;
    for node in nodes {
        Arc::into_inner(node).unwrap().stop().await;
    }
}

/// Sends all at the same moment, one after the other to each replica; the results in their order.
async fn at_once(nodes: &[Arc<Node>; 2], deliveries: &[Delivery]) -> Vec<Value> {
    let barrier = Arc::new(Barrier::new(deliveries.len()));
    let mut sending = JoinSet::new();
    for (place, delivery) in deliveries.iter().cloned().enumerate() {
        let (node, barrier) = (Arc::clone(&nodes[place % 2]), Arc::clone(&barrier));
        sending.spawn(async move {
            barrier.wait().await;
            (place, delivery.send(&node).await)
        });
    }
    let mut replies = sending.join_all().await;
    replies.sort_by_key(|(place, _)| *place);
    replies.into_iter().map(|(_, reply)| reply).collect()
}

fn count(replies: &[Value], result: &str) -> usize {
    replies.iter().filter(|reply| reply["result"] == result).count()
}

#[tokio::test]
async fn the_same_delivery_at_two_replicas_at_once_makes_one_task() {
    let (db, nodes) = replicas().await;
    for number in 1..=10 {
        let delivery = Issue::new(number).delivery("opened");
        let replies = at_once(&nodes, &vec![delivery; 4]).await;
        assert_eq!((count(&replies, "created"), count(&replies, "duplicate")), (1, 3));
        assert!(replies.iter().all(|r| r["task_id"] == replies[0]["task_id"]), "{replies:?}");
    }
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 10);
    assert_eq!(db.count("select count(*) from fleet.task_events").await, 10);
    end(db, nodes).await;
}

#[tokio::test]
async fn the_burst_of_opening_makes_one_task() {
    let (db, nodes) = replicas().await;
    for number in 1..=10 {
        // An issue opened with labels: both within the same moment, with the same labels.
        let issue = Issue::new(number);
        let burst = [issue.delivery("opened"), issue.delivery("label_updated")];
        let replies = at_once(&nodes, &burst).await;
        assert_eq!(count(&replies, "created"), 1, "{replies:?}");
        let task = nodes[0].task(&issue.key()).await;
        assert_eq!((&task["status"], &task["lease"]), (&json!("created"), &json!(0)));
        let made: Vec<&Value> =
            task["events"].as_array().unwrap().iter().filter(|e| e["type"] == "created").collect();
        assert_eq!(made.len(), 1, "{task}");
    }
    end(db, nodes).await;
}

#[tokio::test]
async fn a_replay_under_a_new_id_changes_nothing() {
    let (db, nodes) = replicas().await;
    let node = &nodes[0];
    let issue = Issue::new(42);
    let opened = issue.delivery("opened");
    opened.send(node).await;
    assert_eq!(opened.replayed().send(&nodes[1]).await["result"], "duplicate");
    let closed = issue.closed(None).at(1).delivery("closed");
    closed.send(node).await;
    node.must("/api/v1/tasks/org%2Frepo%2342/retry", json!({})).await;
    // The closing is an old story by now; so is the opening.
    for old in [closed.replayed(), opened.replayed(), closed, opened] {
        let result = old.send(node).await["result"].clone();
        assert!(result == "duplicate" || result == "ignored", "{result}");
        assert_eq!(node.task("org/repo#42").await["status"], "created");
    }
    end(db, nodes).await;
}

#[tokio::test]
async fn an_older_state_is_ignored_and_within_a_second_the_last_delivered_wins() {
    let (db, nodes) = replicas().await;
    let node = &nodes[0];
    let issue = Issue::new(42);
    issue.clone().title("ten").at(10).send("edited", node).await;
    let late = issue.clone().title("five").at(5).send("edited", node).await;
    assert_eq!(late["result"], "ignored");
    assert_eq!(node.task("org/repo#42").await["title"], "ten");
    for title in ["ten again", "ten for the last time"] {
        let same_second = issue.clone().title(title).at(10).send("edited", node).await;
        assert_eq!(same_second["result"], "updated");
        assert_eq!(node.task("org/repo#42").await["title"], title);
    }
    end(db, nodes).await;
}

/// An issue's life; each state in a second of its own.
fn history(number: i64) -> Vec<Delivery> {
    let issue = Issue::new(number).title("first");
    let second = issue.clone().title("second").labels(&["agent/code", "bug"]);
    let third = second.clone().labels(&["agent/docs", "priority/low"]);
    vec![
        issue.at(0).delivery("opened"),
        second.clone().at(1).delivery("edited"),
        second.clone().labels(&["bug"]).at(2).delivery("label_updated"),
        third.clone().at(3).delivery("label_updated"),
        third.clone().closed(None).at(4).delivery("closed"),
        third.clone().open().at(5).delivery("reopened"),
        third.clone().closed(Some("abc")).at(6).delivery("closed"),
        third.clone().open().at(7).delivery("reopened"),
        third.clone().title("third").at(8).delivery("edited"),
        third
            .title("last")
            .labels(&["agent/docs", "agent/code", "p"])
            .at(9)
            .delivery("label_updated"),
    ]
}

/// What must be the same whatever the order was.
fn standing(task: &Value) -> Value {
    let fields =
        ["status", "title", "body", "labels", "capabilities", "priority", "execution_mode"];
    fields.into_iter().map(|field| (field.to_owned(), task[field].clone())).collect()
}

#[tokio::test]
async fn any_order_with_duplicates_ends_where_the_right_order_does() {
    let (db, nodes) = replicas().await;
    for delivery in history(1) {
        delivery.send(&nodes[0]).await;
    }
    let expected = standing(&nodes[0].task("org/repo#1").await);
    assert_eq!((&expected["status"], &expected["title"]), (&json!("created"), &json!("last")));
    for number in 2..=31 {
        let mut deliveries = history(number);
        let twice: Vec<Delivery> = deliveries.iter().step_by(2).cloned().collect();
        let replayed: Vec<Delivery> =
            deliveries.iter().step_by(3).map(Delivery::replayed).collect();
        deliveries.extend(twice);
        deliveries.extend(replayed);
        deliveries.shuffle(&mut rand::rng());
        let order: Vec<String> = deliveries.iter().map(|d| d.id.clone()).collect();
        if number <= 16 {
            for (place, delivery) in deliveries.iter().enumerate() {
                delivery.send(&nodes[place % 2]).await;
            }
        } else {
            at_once(&nodes, &deliveries).await;
        }
        let task = nodes[0].task(&format!("org/repo#{number}")).await;
        assert_eq!(standing(&task), expected, "{order:?}");
    }
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 31);
    end(db, nodes).await;
}

#[tokio::test]
async fn whatever_the_order_a_closed_issue_leaves_no_task_that_waits() {
    let (db, nodes) = replicas().await;
    for number in 1..=15 {
        let mut deliveries = history(number);
        let closed = Issue::new(number).closed(None).at(10).delivery("closed");
        deliveries.push(closed);
        deliveries.shuffle(&mut rand::rng());
        at_once(&nodes, &deliveries).await;
    }
    let open = "select count(*) from fleet.tasks where status not in ('cancelled', 'completed')";
    assert_eq!(db.count(open).await, 0);
    end(db, nodes).await;
}

#[tokio::test]
async fn a_closing_that_comes_before_its_task_is_remembered() {
    let (db, nodes) = replicas().await;
    let issue = Issue::new(1);
    let closed = issue.clone().closed(None).at(1).send("closed", &nodes[0]).await;
    assert_eq!(closed["result"], "ignored");
    let opened = issue.send("opened", &nodes[1]).await;
    assert_eq!(opened["result"], "ignored", "an older state");
    assert_eq!(nodes[0].get("/api/v1/tasks/org%2Frepo%231").await.0, 404);
    let known = "select count(*) from fleet.forge_issues where not (state ->> 'open')::boolean";
    assert_eq!(db.count(known).await, 1);
    end(db, nodes).await;
}

/// Within a second the last delivered wins; the same delivery once more is none.
#[tokio::test]
async fn a_delivery_that_comes_again_does_not_win_again() {
    let (db, nodes) = replicas().await;
    let [first, second] =
        ["first", "second"].map(|title| Issue::new(1).title(title).at(1).delivery("edited"));
    first.send(&nodes[0]).await;
    second.send(&nodes[0]).await;
    assert_eq!(first.send(&nodes[1]).await["result"], "duplicate");
    assert_eq!(nodes[0].task("org/repo#1").await["title"], "second");
    assert_eq!(db.count("select count(*) from fleet.webhook_deliveries").await, 2);
    end(db, nodes).await;
}

/// Two hooks tell the same, each under an id of its own.
#[tokio::test]
async fn a_state_that_another_hook_tells_again_does_not_win_again() {
    let (db, nodes) = replicas().await;
    let issue = Issue::new(1);
    let told = |title: &str, at| issue.clone().title(title).at(at).delivery("edited");
    let [first, second, third] = ["first", "second", "third"].map(|title| told(title, 1));
    for delivery in [&first, &second, &third] {
        delivery.send(&nodes[0]).await;
    }
    for delivery in [&first, &second, &third] {
        let reply = delivery.replayed().send(&nodes[1]).await;
        assert_eq!(reply["result"], "duplicate");
        assert_eq!(nodes[0].task("org/repo#1").await["title"], "third");
    }
    // The next second begins anew.
    let [first, second] = ["first", "second"].map(|title| told(title, 2));
    for (delivery, title) in [(&first, "first"), (&second, "second")] {
        assert_eq!(delivery.send(&nodes[0]).await["result"], "updated");
        assert_eq!(nodes[0].task("org/repo#1").await["title"], title);
    }
    assert_eq!(first.replayed().send(&nodes[1]).await["result"], "duplicate");
    let kept = "select cardinality(recent_hashes)::bigint from fleet.forge_issues";
    assert_eq!(db.count(kept).await, 1, "only those of this second, without the last");
    end(db, nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_that_arrive_together_are_committed_together_and_hurt_no_others() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    let known = Issue::new(1);
    let seen = known.delivery("opened");
    assert_eq!(seen.send(&node).await["result"], "created");
    db.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin
           if new.title = 'poison' then raise exception using errcode = '22000'; end if;
           return new; end $$;
         create trigger refuse before insert on fleet.task_specs for each row execute function refuse()",
    )
    .await;
    let push = Delivery { event: "push".to_owned(), ..Issue::new(2).delivery("opened") };
    let others = [
        (seen.clone(), "duplicate"),
        (known.clone().at(5).title("another title").delivery("edited"), "updated"),
        (Issue::new(3).labels(&[]).delivery("opened"), "ignored"),
        (push, "ignored"),
    ];
    // While nobody gets at the table, all but the first ones gather.
    let together = async |poison: i64| {
        let first = 100 + poison * 100;
        let title = |n| if n == poison { "poison" } else { "an issue" };
        let new = (1..=20).map(|n| Issue::new(first + n).title(title(n)).delivery("opened"));
        let mut all: Vec<(Delivery, &str)> = new.map(|delivery| (delivery, "created")).collect();
        if poison == 0 {
            all.extend(others.iter().cloned());
        }
        let mut other = db.connect().await;
        let tx = other.transaction().await.unwrap();
        tx.batch_execute("lock table fleet.webhook_deliveries in exclusive mode").await.unwrap();
        let sending = join_all(all.iter().map(|(delivery, _)| delivery.answer(&node)));
        let releasing = async {
            db.until_waiting(1).await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            tx.rollback().await.unwrap();
        };
        let (replies, ()) = tokio::join!(sending, releasing);
        for ((n, (status, reply)), (_, result)) in (1..).zip(replies).zip(&all) {
            if n == poison {
                assert!(status.is_server_error(), "{status} {reply}");
            } else {
                assert_eq!(
                    (status, &reply["result"]),
                    (StatusCode::ACCEPTED, &json!(result)),
                    "{n}"
                );
            }
        }
    };
    together(0).await;
    let commits =
        "select count(distinct xid) from fleet.task_events e join fleet.tasks t using (task_id)
                    where e.type = 'created' and t.key > 'org/repo#100' and t.key < 'org/repo#121'";
    // The first, those beside it, and all the others; on a busy machine some come late.
    let commits = db.count(commits).await;
    assert!(commits <= 10, "{commits} commits for 20 deliveries");
    assert_eq!(node.task("org/repo#1").await["title"], "another title");
    together(12).await;
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 1 + 20 + 19);
    assert_eq!(db.count("select count(*) from fleet.webhook_deliveries").await, 1 + 20 + 3 + 19);
    db.check_history().await;
    node.stop().await;
}

/// A forge sends nothing twice.
#[tokio::test]
async fn a_delivery_that_comes_while_the_database_is_away_is_taken_when_it_is_back() {
    let db = Db::new().await;
    let node = Node::start(&db, "r", "").await;
    let other = db.connect().await;
    let lock = "begin; lock table fleet.webhook_deliveries in access exclusive mode";
    other.batch_execute(lock).await.unwrap();
    let (status, reply) = Issue::new(1).delivery("opened").answer(&node).await;
    assert_eq!((status, &reply["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    // Its first try fails after `lock_timeout`.
    let waiting = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                    where not l.granted and d.datname = current_database()";
    eventually("a try has failed", async || (db.count(waiting).await == 0).then_some(())).await;
    other.batch_execute("rollback").await.unwrap();
    let tasks = "select count(*) from fleet.tasks where key = 'org/repo#1'";
    eventually("it is taken", async || (db.count(tasks).await == 1).then_some(())).await;
    db.check_history().await;
    node.stop().await;
}
