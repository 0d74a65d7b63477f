//! What anybody may send, in any order and any shape, against a model or a rule.

use agent_fleet::{
    model::{ExecutionMode as Mode, SessionId},
    store::{Appended, HeldLease, NewRun, Refusal, Store},
};
use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::support::{
    db::Db,
    fleet::{agent, create, host, next, operator, pull, push, replica, task},
    forge::{SECRET, post, sign},
    node::Node,
    property,
};

/// A chunk: where it begins, seen from where the output ends; what it holds; whether its sender has the lease.
#[derive(Debug, Clone)]
struct Sent {
    from_end: i64,
    data: Vec<u8>,
    stale: bool,
    /// Sent twice at once.
    twice: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    // Where it should begin, most of the time.
    let from_end = prop_oneof![4 => Just(0_i64), 2 => -12..0_i64, 1 => 1..9_i64, 1 => any::<i32>().prop_map(i64::from)];
    let data = prop::collection::vec(any::<u8>(), 0..12);
    (from_end, data, prop::bool::weighted(0.15), prop::bool::weighted(0.2))
        .prop_map(|(from_end, data, stale, twice)| Sent { from_end, data, stale, twice })
}

/// The whole stored output under a lease, read from every offset.
async fn stored(store: &Store, held: &HeldLease, length: usize) -> Vec<u8> {
    let mut whole = Vec::new();
    for start in (0..=length).rev() {
        let (mut read, mut offset) = (Vec::new(), i64::try_from(start).unwrap());
        loop {
            let page =
                store.read_logs(held.task_id, Some(held.lease), offset).await.unwrap().unwrap();
            if page.chunks.is_empty() {
                break;
            }
            for chunk in page.chunks {
                assert_eq!(chunk.offset, i64::try_from(start + read.len()).unwrap());
                read.extend(chunk.data);
            }
            offset = page.next_offset;
        }
        assert!(start == length || read.len() == length - start, "from {start}: {read:?}");
        whole = read;
    }
    whole
}

#[test]
fn log_chunks_of_any_order_agree_with_a_model() {
    let chunks = prop::collection::vec(sent(), 1..14);
    property::check("tests/it/regressions/log_chunks.txt", 40, &chunks, async |db, chunks| {
        let store = db.store();
        let session = agent(&store, "a", &["agent:x"], 100).await;
        create(&store, task(&["agent:x"], Mode::HttpPull), 1).await;
        let held = pull(&store, session).await.unwrap();
        let stale = HeldLease { holder: SessionId(Uuid::now_v7()), ..held };
        let mut model: Vec<u8> = Vec::new();
        for sent in chunks {
            let end = i64::try_from(model.len()).unwrap();
            let offset = (end + sent.from_end).max(0);
            let append =
                || store.append_log(if sent.stale { &stale } else { &held }, offset, &sent.data);
            let mut answers = vec![append().await.unwrap()];
            if sent.twice {
                let (first, second) = tokio::join!(append(), append());
                answers.extend([first.unwrap(), second.unwrap()]);
            }
            let length = i64::try_from(sent.data.len()).unwrap();
            let first = match offset.cmp(&end) {
                _ if sent.stale => Appended::Refused(Refusal::LeaseLost),
                std::cmp::Ordering::Less => Appended::Overlaps(end),
                std::cmp::Ordering::Equal => Appended::Stored(end + length),
                std::cmp::Ordering::Greater => Appended::Gap(end),
            };
            assert_eq!(answers[0], first);
            if first == Appended::Stored(end + length) {
                model.extend(&sent.data);
                // What is repeated is there already.
                let again = if length == 0 { first } else { Appended::Overlaps(end + length) };
                assert!(answers[1..].iter().all(|answer| *answer == again), "{answers:?}");
            } else {
                assert!(answers.iter().all(|answer| *answer == first), "{answers:?}");
            }
        }
        assert_eq!(stored(&store, &held, model.len()).await, model);
        store.close();
    });
}

#[test]
fn two_followers_of_a_run_store_each_byte_once() {
    // Who sends, from where, how much of what the run printed.
    let reads = prop::collection::vec((any::<bool>(), 0..6_usize, 1..9_usize), 1..20);
    property::check("tests/it/regressions/followers.txt", 24, &reads, async |db, reads| {
        let printed: Vec<u8> = (0..=255).collect();
        let store = db.store();
        create(&store, task(&["agent:x"], Mode::SshCli), 1).await;
        let (old, slots) = replica(&store, "r1", &[host("h", &["agent:x"], 100)]).await;
        let slots: Vec<_> = slots.into_values().collect();
        let first = push(&store, old, &slots).await[0];
        let run = NewRun {
            command: &[],
            prompt_via: "stdin",
            output: "raw",
            work_dir: "/w",
            timeout_secs: 9,
        };
        assert!(store.insert_run(&first, &run).await.unwrap());
        let (me, _) = replica(&store, "r2", &[host("h", &["agent:x"], 100)]).await;
        let second = HeldLease { lease: next(first.lease), holder: me, ..first };
        // After so many steps the second has taken over.
        let taken_after = reads.len() / 2;
        let mut model = 0;
        for (step, (by_second, back, length)) in reads.into_iter().enumerate() {
            if step == taken_after {
                store.end_session(old, "silent").await.unwrap();
                let taken = store.take_over_runs(&slots, me, &operator()).await.unwrap();
                assert!(taken.iter().any(|t| t.held == second), "{taken:?}");
            }
            let from = model - back.min(model);
            let held = if by_second { second } else { first };
            let data = &printed[from..(from + length).min(printed.len())];
            let offset = i64::try_from(from).unwrap();
            let append = || store.append_run_output(&held, first.lease, offset, data);
            // Its answer was lost, so it sends it once more, at the same time.
            let (one, two) = tokio::join!(append(), append());
            let may = from == model && by_second == (step >= taken_after);
            assert_eq!(u8::from(one.unwrap()) + u8::from(two.unwrap()), u8::from(may));
            model += if may { data.len() } else { 0 };
        }
        assert_eq!(stored(&store, &first, model).await, printed[..model]);
        store.close();
    });
}

/// What takes the place of a part of a payload.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        any::<String>().prop_map(|s| json!(s)),
        Just(json!("a\0b")),
        Just(json!("x".repeat(200_000))),
        Just(json!([])),
        Just(json!([[{"name": 7}], null])),
        Just(json!({"name": {"name": null}})),
        Just(json!("9999-99-99T99:99:99Z")),
    ]
}

/// How a payload is spoiled.
#[derive(Debug, Clone)]
enum Spoil {
    /// These bytes instead.
    Bytes(Vec<u8>),
    /// Parts of a real one, each replaced or taken away.
    Parts(Vec<(Index, Option<Value>)>),
    /// A real one, cut off.
    Cut(Index),
    /// A byte of a real one, changed.
    Byte(Index, u8),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let part = (any::<Index>(), prop::option::weighted(0.8, value()));
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Spoil::Bytes),
        6 => prop::collection::vec(part, 1..4).prop_map(Spoil::Parts),
        1 => any::<Index>().prop_map(Spoil::Cut),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Spoil::Byte(at, byte)),
    ]
}

impl Spoil {
    fn apply(&self, payload: &Value) -> Vec<u8> {
        let mut bytes = payload.to_string().into_bytes();
        match self {
            Self::Bytes(other) => bytes.clone_from(other),
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Parts(parts) => {
                let mut payload = payload.clone();
                for (at, value) in parts {
                    let places = places(&payload, "");
                    let place = &places[at.index(places.len())];
                    let (parent, name) = place.rsplit_once('/').unwrap();
                    match (payload.pointer_mut(parent).unwrap(), value) {
                        (Value::Object(fields), Some(value)) => {
                            fields.insert(name.to_owned(), value.clone());
                        }
                        (Value::Object(fields), None) => drop(fields.remove(name)),
                        (parent, value) => *parent = value.clone().unwrap_or_default(),
                    }
                }
                bytes = payload.to_string().into_bytes();
            }
        }
        bytes
    }
}

/// Where a payload has parts.
fn places(value: &Value, path: &str) -> Vec<String> {
    let Value::Object(fields) = value else { return Vec::new() };
    let below = fields.iter().flat_map(|(name, value)| {
        let path = format!("{path}/{name}");
        let mut all = places(value, &path);
        all.push(path);
        all
    });
    let mut all: Vec<String> = below.collect();
    if all.is_empty() {
        all.push(format!("{path}/x"));
    }
    all
}

#[test]
fn no_delivery_breaks_a_replica() {
    let payloads = [
        include_str!("../fixtures/forgejo/opened.json"),
        include_str!("../fixtures/forgejo/closed_by_commit.json"),
        include_str!("../fixtures/forgejo/label_updated.json"),
        include_str!("../fixtures/forgejo/issue_comment.json"),
    ];
    let payloads: Vec<Value> =
        payloads.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let event = prop_oneof![
        6 => prop::sample::select(vec!["issues", "issue_label", "issue_comment", "pull_request", "push"]).prop_map(str::to_owned),
        1 => "[ -~]{0,40}",
    ];
    let signature = prop_oneof![6 => Just(None), 1 => "[ -~]{0,80}".prop_map(Some)];
    let delivery = (any::<Index>(), spoil(), event, signature, "[ -~]{0,60}");
    let node: OnceCell<Node> = OnceCell::new();
    property::check("tests/it/regressions/deliveries.txt", 192, &delivery, async |db, delivery| {
        let node = node.get_or_init(|| Node::start(db, "a", "")).await;
        let (which, spoil, event, signature, id) = delivery;
        let body = spoil.apply(&payloads[which.index(payloads.len())]);
        let signed = signature.is_none();
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("x-forgejo-delivery", id),
            ("x-forgejo-event", event.clone()),
            ("x-forgejo-event-type", event),
            ("x-forgejo-signature", signature.unwrap_or_else(|| sign(SECRET, &body))),
        ];
        let before = taken(db).await;
        let (status, reply) = post(&node.url, &headers, body).await;
        let status = status.as_u16();
        assert!(status < 500, "{status} {reply}");
        if status == 202 {
            assert!(signed, "{reply}");
            assert!(
                ["created", "updated", "ignored", "duplicate"]
                    .contains(&reply["result"].as_str().unwrap())
            );
        } else {
            assert_eq!(signed, status != 401, "{status} {reply}");
            assert!(reply["error"].is_string() && reply["code"].is_string(), "{status} {reply}");
            assert_eq!(taken(db).await, before, "refused, and yet something is there");
        }
    });
}

/// How much of the forge the database knows.
async fn taken(db: &Db) -> i64 {
    db.count(
        "select (select count(*) from fleet.webhook_deliveries) + (select count(*) from fleet.tasks)
              + (select count(*) from fleet.forge_issues) + (select count(*) from fleet.task_events)",
    )
    .await
}
