//! The completion and the next claim in one statement: it leaves what the statements of both in full would, and where it cannot
//! know it does nothing, so that they do it.

use std::{collections::BTreeSet, time::Duration};

use agent_fleet::{
    model::{
        Actor, Artifact, CapabilitySet, ExecutionMode as Mode, SessionId, Source, TaskId, Usage,
    },
    store::{EndLease, Ended, HeldLease, NewTask, Outcome, Refusal, Store, Waiter, Worked},
};
use serde_json::json;
use tokio_postgres::{Client, types::ToSql};
use uuid::Uuid;

use crate::{
    at_once::{claimer, late, served},
    completions::picture,
    support::{
        db::{Db, sql},
        fleet::{agent, complete, completion, ending, hinted, operator, pull, task},
    },
};

const NEXT: &str = "claim_pull_next";

/// An agent that holds a task, as the store knows.
async fn busy(store: &Store, id: &str, slots: i32) -> (SessionId, HeldLease) {
    let session = agent(store, id, &[], slots).await;
    hinted(store, vec![task(&[], Mode::Undecided)]).await;
    (session, pull(store, session).await.unwrap())
}

/// Its receipt.
fn done(id: &str, held: HeldLease) -> EndLease {
    EndLease { actor: Actor::Agent(id.into()), ..completion(held) }
}

async fn work(store: &Store, ends: &[EndLease], sessions: &[SessionId]) -> Worked {
    let waiters: Vec<Waiter> = sessions.iter().map(|session| Waiter::one(*session)).collect();
    store.work(ends, Duration::ZERO, &waiters).await.unwrap()
}

/// What the statement ends and takes for agent `a`, who holds this and wants the next, by one who is or is not the last that
/// claimed for it.
async fn acts(client: &Client, text: &str, held: HeldLease, claimer: Uuid) -> (usize, usize) {
    acts_for(client, text, &[("a", held, 0)], claimer).await
}

/// The same for several, each with its mark.
async fn acts_for(
    client: &Client,
    text: &str,
    asking: &[(&str, HeldLease, i64)],
    claimer: Uuid,
) -> (usize, usize) {
    macro_rules! of {
        ($value:expr) => {
            asking.iter().map($value).collect::<Vec<_>>()
        };
    }
    let params: [&(dyn ToSql + Sync); 13] = [
        &of!(|ask| ask.1.task_id.0),
        &of!(|ask| ask.1.lease.0),
        &of!(|ask| ask.1.holder.0),
        &of!(|ask| ask.0),
        &of!(|_| json!({"status": "completed"})),
        &of!(|_| vec![0_u8; 32]),
        &of!(|_| None::<&str>),
        &of!(|_| Uuid::now_v7()),
        &of!(|_| 1_i64),
        &of!(|_| 1_i16),
        &of!(|ask| ask.2),
        &(0..).take(asking.len()).collect::<Vec<i64>>(),
        &claimer,
    ];
    let rows = client.query(text, &params).await.unwrap();
    let ended = rows.iter().filter(|row| row.get::<_, Option<&str>>("type").is_some()).count();
    (ended, rows.len() - ended)
}

#[tokio::test]
async fn all_that_complete_take_the_next_ones_in_the_order_of_the_queue() {
    let db = Db::new().await;
    let store = db.store();
    let mut held = Vec::new();
    for id in ["a", "b", "c"] {
        held.push(busy(&store, id, 1).await);
    }
    let tasks = hinted(&store, vec![task(&[], Mode::Undecided); 4]).await;
    let ends = [done("c", held[2].1), done("a", held[0].1), done("b", held[1].1)];
    let (a, b, c) = (held[0].0, held[1].0, held[2].0);
    let worked = work(&store, &ends, &[b, c, a]).await;
    assert_eq!(served(&db).await, 3);
    assert!(worked.ended.iter().all(|ended| matches!(ended, Ended::Now(_))), "{:?}", worked.ended);
    let mut claimed = worked.claims.claimed.clone();
    claimed.sort_unstable();
    let got: Vec<(usize, TaskId)> = claimed.iter().map(|claim| (claim.0, claim.1)).collect();
    assert_eq!(got, [(0, tasks[0]), (1, tasks[1]), (2, tasks[2])], "in the order of the waiters");
    assert!(!worked.claims.shortfall);
    // Of both it shows what is stored.
    for task_id in tasks[..3].iter().copied().chain(held.iter().map(|(_, held)| held.task_id)) {
        let stored = store.get_task(task_id).await.unwrap();
        assert_eq!(json!(stored), json!(worked.claims.tasks.get(&task_id)));
    }
    assert!(worked.claims.tasks[&tasks[0]].lease_expires_at.is_some());

    // One is left for two: who goes without is told so by the claim in full.
    let held: Vec<HeldLease> = claimed
        .iter()
        .map(|&(place, task_id, lease)| HeldLease { task_id, lease, holder: [b, c, a][place] })
        .collect();
    let worked = work(&store, &[done("b", held[0]), done("c", held[1])], &[b, c]).await;
    assert_eq!(worked.ended.len(), 2);
    assert_eq!(worked.claims.claimed.len(), 1);
    assert_eq!(worked.claims.claimed[0].1, tasks[3]);
    assert!(!store.may_have_ready(&CapabilitySet::default()), "that was all");
    // What it holds is remembered: it is full.
    let claims = store.claim_for_agents(&[Waiter::one(a)], true).await.unwrap();
    assert!(claims.claimed.is_empty());
    db.check_history().await;
}

/// PostgreSQL goes on comparing with the plans that it made first, when the tables were empty, so it may plan anew each time.
#[tokio::test]
async fn claims_and_completions_and_creations_are_run_by_the_plans_that_there_are() {
    let db = Db::new().await;
    let store = db.store();
    let (session, held) = busy(&store, "a", 1).await;
    let (second, _) = busy(&store, "b", 2).await;
    db.execute(
        "create table public.modes (mode text);
         grant insert on public.modes to public;
         create function public.note() returns trigger language plpgsql as
           $$begin insert into public.modes values (current_setting('plan_cache_mode')); return null; end$$;
         create trigger note after insert or update on fleet.tasks for each statement execute function public.note()",
    )
    .await;
    let mut seen = 0;
    let mut planned = async |what: &str| {
        let rows = db.rows("select mode from public.modes", &[]).await;
        assert!(rows.len() > seen, "{what}");
        seen = rows.len();
        for row in rows {
            assert_eq!(row.get::<_, &str>(0), "force_generic_plan", "{what}");
        }
    };
    hinted(&store, vec![task(&[], Mode::Undecided); 2]).await;
    planned("a creation").await;
    let worked = work(&store, &[done("a", held)], &[session]).await;
    assert_eq!((served(&db).await, worked.claims.claimed.len()), (1, 1));
    planned("a completion with the next claim").await;
    let claims = store.claim_at_once(&Waiter::one(second)).await.unwrap();
    assert_eq!((served(&db).await, claims.claimed.len()), (2, 1));
    planned("a claim").await;
}

/// The other store was not the last to claim for these sessions.
#[tokio::test]
async fn it_leaves_the_same_as_the_statements_in_full() {
    let db = Db::new().await;
    let (store, other) = (db.store(), db.store());
    for (started, opened, repeated) in
        [(false, false, false), (true, true, false), (true, false, true)]
    {
        let mut pictures = Vec::new();
        for (by, at_once) in [(&store, true), (&other, false)] {
            let session = agent(&store, "a", &[], 2).await;
            let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let new = NewTask {
                traceparent: started.then(|| parent.parse().unwrap()),
                max_retries: 1,
                ..task(&[], Mode::Undecided)
            };
            hinted(&store, vec![new; 2]).await;
            other.ready_somewhere();
            let mut held = pull(&store, session).await.unwrap();
            if repeated {
                // It has an error, and an attempt, from before.
                store.end_leases(&[ending(held, Outcome::Failed)], Duration::ZERO).await.unwrap();
                db.execute("update fleet.tasks set run_at = now(), priority = 1 where status = 'scheduled'").await;
                store.promote_due_tasks(&operator()).await.unwrap();
                let next = pull(&store, session).await.unwrap();
                store.end_leases(&[ending(next, Outcome::Released)], Duration::ZERO).await.unwrap();
                held = pull(&store, session).await.unwrap();
            }
            if started {
                let actor = Actor::Agent("a".into());
                store.start_task(&held, &actor, json!({}), None).await.unwrap().unwrap();
            }
            let mut end = done("a", held);
            let receipt = end.receipt.as_mut().unwrap();
            let pr = Artifact::Pr { url: "https://forge.test/pulls/1".into() };
            receipt.artifacts.extend(opened.then_some(pr));
            receipt.usage = Some(Usage { input_tokens: Some(7), ..Usage::default() });
            let locked_by = "select xmax::text::bigint from fleet.agents";
            let before = db.count(locked_by).await;
            let worked = work(by, &[end], &[session]).await;
            assert!(!worked.claims.claimed.is_empty(), "{started} {opened} {repeated} {at_once}");
            assert_eq!(
                db.count(locked_by).await != before,
                at_once,
                "{started} {opened} {repeated}"
            );
            let (_, task_id, lease) = worked.claims.claimed[0];
            let next = HeldLease { task_id, lease, holder: session };
            let mut both = Vec::new();
            for held in [held, next] {
                let mut picture = picture(&db, held).await;
                picture["task"]["holder"].take();
                picture["task"]["claim_id"].take();
                both.push(picture);
            }
            pictures.push((worked.ended[0], both));
            // Out of the way of what comes.
            store.cancel_task(task_id, &operator(), None).await.unwrap().unwrap();
        }
        assert_eq!(pictures[0], pictures[1], "{started} {opened} {repeated}");
    }
    db.check_history().await;
}

#[tokio::test]
async fn it_does_nothing_for_whom_it_may_not() {
    let db = Db::new().await;
    let store = db.store();
    let (session, held) = busy(&store, "a", 1).await;
    hinted(&store, vec![task(&[], Mode::Undecided); 2]).await;
    let claimer = claimer(&db, session).await;
    let other = db.connect().await;
    let last = "where seq = (select max(seq) from fleet.tasks)";
    let pin = format!(
        "update fleet.tasks set status = 'assigned', execution_mode = 'http_pull', pinned_to = 'a' {last}"
    );
    let pin_other = pin.replace("'a'", "'b'");
    for (act, acted) in [
        ("select", (1, 1)),
        ("update fleet.sessions set claimer = gen_random_uuid()", (0, 0)),
        ("update fleet.sessions set claimer = null", (0, 0)),
        ("update fleet.sessions set ended_at = now()", (0, 0)),
        ("update fleet.sessions set last_heartbeat_at = now() - ttl / 2", (0, 0)),
        ("update fleet.agents set session_id = gen_random_uuid()", (0, 0)),
        ("update fleet.agents set drained_at = now()", (0, 0)),
        (pin.as_str(), (0, 0)),
        (pin_other.as_str(), (1, 1)),
        ("update fleet.tasks set lease = 2 where holder is not null", (0, 0)),
        ("update fleet.tasks set holder = gen_random_uuid() where holder is not null", (0, 0)),
        ("update fleet.tasks set host_agent_id = 1 where holder is not null", (0, 0)),
        ("update fleet.tasks set source = 'forgejo' where holder is not null", (0, 0)),
        ("update fleet.tasks set status = 'review_pending' where holder is not null", (0, 0)),
        ("update fleet.lanes set paused_at = now()", (1, 0)),
        ("update fleet.tasks set execution_mode = 'ssh_cli' where holder is null", (1, 0)),
        ("update fleet.tasks set priority = 2 where holder is null", (1, 0)),
    ] {
        other.batch_execute(&format!("begin; {act}")).await.unwrap();
        assert_eq!(acts(&other, sql(NEXT), held, claimer).await, acted, "{act}");
        other.batch_execute("rollback").await.unwrap();
    }
    // Locked by somebody else.
    let holder = db.connect().await;
    for (lock, acted) in [
        ("select from fleet.sessions for no key update", (0, 0)),
        ("select from fleet.agents for no key update", (0, 0)),
        ("select from fleet.tasks where holder is null for update", (1, 0)),
        ("select from fleet.tasks where seq = 2 for update", (1, 1)),
    ] {
        holder.batch_execute(&format!("begin; {lock}")).await.unwrap();
        other.batch_execute("begin").await.unwrap();
        assert_eq!(acts(&other, sql(NEXT), held, claimer).await, acted, "{lock}");
        other.batch_execute("rollback").await.unwrap();
        holder.batch_execute("rollback").await.unwrap();
    }
}

/// Two sets of capabilities may be about one lane, and its mark may move between the looks for both.
#[tokio::test]
async fn who_knows_another_mark_of_one_lane_still_takes_one_task() {
    let db = Db::new().await;
    let store = db.store();
    let (session, a) = busy(&store, "a", 1).await;
    let (_, b) = busy(&store, "b", 1).await;
    hinted(&store, vec![task(&[], Mode::Undecided); 4]).await;
    let claimer = claimer(&db, session).await;
    let other = db.connect().await;
    let acted = acts_for(&other, sql(NEXT), &[("a", a, 0), ("b", b, 1)], claimer).await;
    assert_eq!(acted, (2, 2));
    let most = "select max(n) from (select count(*) as n from fleet.tasks where holder is not null group by holder) h";
    assert_eq!(db.count(most).await, 1);
}

/// Its snapshot is older than its locks, unlike that of the claim in full.
#[tokio::test]
async fn under_its_locks_it_looks_again_whether_it_may() {
    let db = Db::new().await;
    let (store, other_replica) = (db.store(), db.store());
    let (session, held) = busy(&store, "a", 2).await;
    let tasks = hinted(&store, vec![task(&[], Mode::Undecided); 3]).await;
    let claimer = claimer(&db, session).await;
    let gate = db.connect().await;
    for (act, acted) in [("drain", (0, 0)), ("take", (1, 1)), ("end", (0, 0)), ("claim", (0, 0))] {
        gate.batch_execute("select pg_advisory_lock(7)").await.unwrap();
        let claim = db.connect().await;
        let acting = tokio::spawn(async move {
            claim.batch_execute("begin").await.unwrap();
            let acted = acts(&claim, &late(NEXT), held, claimer).await;
            let sql = "select min(seq) from fleet.tasks where lease > 0 and holder is not null";
            let seq: Option<i64> = claim.query_one(sql, &[]).await.unwrap().get(0);
            claim.batch_execute("rollback").await.unwrap();
            (acted, seq)
        });
        db.until_waiting(1).await;
        match act {
            "drain" => assert!(store.set_agent_drained("a", true).await.unwrap()),
            // The first of the queue goes to somebody else.
            "take" => store.cancel_task(tasks[0], &operator(), None).await.unwrap().unwrap(),
            "end" => {
                db.execute("begin; update fleet.tasks set lease = lease + 1 where holder is not null; commit")
                    .await;
            }
            _ => assert!(pull(&other_replica, session).await.is_some()),
        }
        gate.batch_execute("select pg_advisory_unlock(7)").await.unwrap();
        let (done, seq) = acting.await.unwrap();
        assert_eq!(done, acted, "{act}");
        if act == "take" {
            assert_eq!(seq, Some(3), "the second of the queue");
        }
        if act == "end" {
            db.execute("update fleet.tasks set lease = lease - 1 where holder is not null").await;
        }
        assert!(store.set_agent_drained("a", false).await.unwrap());
    }
    db.check_history().await;
}

/// Some by the one statement, the others by those in full, each answered in its place.
#[tokio::test]
async fn who_cannot_be_served_so_is_served_in_full_beside_the_others() {
    let db = Db::new().await;
    let store = db.store();
    let ids = ["a", "b", "c", "d", "e", "f"];
    let mut held = Vec::new();
    for id in ids {
        held.push(busy(&store, id, 2).await);
    }
    // `b` ends two, `c` fails, `d` wants two, `e` is late, `f` has an issue.
    hinted(&store, vec![task(&[], Mode::Undecided)]).await;
    let second = pull(&store, held[1].0).await.unwrap();
    store.cancel_task(held[4].1.task_id, &operator(), None).await.unwrap().unwrap();
    db.execute(&format!(
        "update fleet.tasks set source = 'forgejo' where task_id = '{}'",
        held[5].1.task_id
    ))
    .await;
    hinted(&store, vec![task(&[], Mode::Undecided); 9]).await;
    let mut ends: Vec<EndLease> =
        ids.iter().zip(&held).map(|(id, held)| done(id, held.1)).collect();
    ends[2] = EndLease { actor: Actor::Agent("c".into()), ..ending(held[2].1, Outcome::Failed) };
    ends.insert(2, done("b", second));
    let mut waiters: Vec<Waiter> = held.iter().map(|(session, _)| Waiter::one(*session)).collect();
    waiters[3].max_tasks = 2;
    let worked = store.work(&ends, Duration::ZERO, &waiters).await.unwrap();
    // It locked `e` and `f`, too, before it saw that it may not.
    assert_eq!(served(&db).await, 3);
    let now = |n: usize| matches!(worked.ended[n], Ended::Now(_));
    assert!([0, 1, 2, 3, 4, 6].into_iter().all(now), "{:?}", worked.ended);
    assert_eq!(worked.ended[5], Ended::Not(Refusal::LeaseLost));
    let of = |place| worked.claims.claimed.iter().filter(move |claim| claim.0 == place).count();
    assert_eq!([0, 1, 2, 3, 4, 5].map(of), [1, 1, 1, 2, 1, 1]);
    let distinct: BTreeSet<TaskId> = worked.claims.claimed.iter().map(|claim| claim.1).collect();
    assert_eq!(distinct.len(), 7);
    assert_eq!(worked.claims.tasks.len(), 7 + ends.len(), "each is shown");
    db.check_history().await;
}

/// What is first in the queue may be in two lanes, so both have to be read, until the poll says that one is empty.
#[tokio::test]
async fn several_lanes_are_taken_from_in_the_order_of_the_queue() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &["agent:x", "agent:y"], 1).await;
    let lane = |name| task(&[name], Mode::Undecided);
    let tasks =
        hinted(&store, vec![lane("agent:x"), lane("agent:y"), lane("agent:x"), lane("agent:x")])
            .await;
    let mut held = pull(&store, session).await.unwrap();
    assert_eq!(held.task_id, tasks[0]);
    for (next, served_so) in [(tasks[1], 0), (tasks[2], 0), (tasks[3], 1)] {
        if served_so == 1 {
            assert!(store.look_below(&[session]).await.unwrap().is_empty(), "no pin");
        }
        let worked = work(&store, &[done("a", held)], &[session]).await;
        let (_, task_id, lease) = worked.claims.claimed[0];
        assert_eq!(task_id, next);
        assert_eq!(served(&db).await, served_so);
        held = HeldLease { task_id, lease, holder: session };
    }
    db.check_history().await;
}

#[tokio::test]
async fn the_issue_of_a_forge_is_not_tried_so() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &[], 1).await;
    let new = NewTask { source: Source::Forgejo, ..task(&[], Mode::Undecided) };
    hinted(&store, vec![new, task(&[], Mode::Undecided), task(&[], Mode::Undecided)]).await;
    let mut held = pull(&store, session).await.unwrap();
    for served_so in [0, 1] {
        let worked = work(&store, &[done("a", held)], &[session]).await;
        let (_, task_id, lease) = worked.claims.claimed[0];
        held = HeldLease { task_id, lease, holder: session };
        assert_eq!(served(&db).await, served_so, "not even locked for it");
    }
    // Where the store was not told, the statement sees it.
    complete(&store, held).await;
}

/// Two replicas, each with its agents, until nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_take_the_head_of_one_queue_take_each_task_once() {
    const AGENTS: usize = 8;
    const TASKS: usize = 400;
    let db = Db::new().await;
    let mut fleet = Vec::new();
    for replica in 0..2 {
        let store = db.store();
        let mut crew = Vec::new();
        for n in 0..AGENTS {
            let id = format!("a{replica}-{n}");
            let (_, held) = busy(&store, &id, 1).await;
            crew.push((id, held));
        }
        fleet.push((store, crew));
    }
    let tasks = hinted(&fleet[0].0, vec![task(&[], Mode::Undecided); TASKS]).await;
    fleet[1].0.ready_somewhere();
    let working = fleet.into_iter().map(|(store, mut crew)| {
        tokio::spawn(async move {
            let mut got = Vec::new();
            while !crew.is_empty() {
                let ends: Vec<EndLease> = crew.iter().map(|(id, held)| done(id, *held)).collect();
                let sessions: Vec<SessionId> = crew.iter().map(|(_, held)| held.holder).collect();
                let worked = work(&store, &ends, &sessions).await;
                assert!(worked.ended.iter().all(|ended| matches!(ended, Ended::Now(_))));
                let claimed = worked.claims.claimed.iter();
                crew = claimed
                    .map(|&(place, task_id, lease)| {
                        got.push(task_id);
                        let holder = sessions[place];
                        (crew[place].0.clone(), HeldLease { task_id, lease, holder })
                    })
                    .collect();
            }
            got
        })
    });
    let mut got = Vec::new();
    for working in working.collect::<Vec<_>>() {
        got.extend(working.await.unwrap());
    }
    got.sort_unstable();
    let mut all = tasks;
    all.sort_unstable();
    assert_eq!(got, all);
    db.check_history().await;
}
