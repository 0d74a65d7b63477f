//! Completions: what the statement that is only for them does is what the one for every end of a lease would do.

use std::time::Duration;

use agent_fleet::{
    model::{Actor, Artifact, ExecutionMode as Mode, Status, Usage},
    store::{EndLease, Ended, HeldLease, NewTask, Outcome, Refusal, Waiter, Worked},
};
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    fleet::{agent, complete, completion, create, end, ending, operator, pull, task},
};

/// What is left of a task besides what names it; of times only whether there is one.
pub(crate) async fn picture(db: &Db, held: HeldLease) -> Value {
    let row = db
        .rows(
            "select jsonb_build_object(
                      'task', (select jsonb_object_agg(key, case when key ~ '_at$' then to_jsonb(value <> 'null') else value end)
                                 from jsonb_each(to_jsonb(t)) where key not in ('task_id', 'seq')),
                      'events', (select jsonb_agg(to_jsonb(e) - array['task_id', 'event_id', 'xid', 'at'] order by event_id)
                                   from fleet.task_events e where e.task_id = t.task_id),
                      'receipts', (select jsonb_agg(to_jsonb(r) - array['task_id', 'received_at'])
                                     from fleet.receipts r where r.task_id = t.task_id))
               from fleet.tasks t where t.task_id = $1",
            &[&held.task_id.0],
        )
        .await;
    row[0].get(0)
}

/// A task as it is shown, likewise.
fn shown(worked: &Worked, held: HeldLease) -> Value {
    let mut task = serde_json::to_value(&worked.claims.tasks[&held.task_id]).unwrap();
    for name in ["task_id", "key", "branch_name"] {
        assert!(task[name].take().is_string());
    }
    for (name, value) in task.as_object_mut().unwrap() {
        if name.ends_with("_at") {
            *value = Value::Bool(!value.is_null());
        }
    }
    task
}

/// What is completed alone goes by `complete_leases`, beside others by `end_leases`.
#[tokio::test]
async fn a_completion_leaves_the_same_alone_and_among_other_ends() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &[], 3).await;
    let actor = Actor::Agent("a".into());
    for (started, opened, repeated) in
        [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
    {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let new = NewTask {
            traceparent: started.then(|| parent.parse().unwrap()),
            max_retries: 1,
            ..task(&[], Mode::Undecided)
        };
        create(&store, new, 3).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(pull(&store, session).await.unwrap());
        }
        if repeated {
            // They have an error from before.
            for held in &mut held {
                end(&store, *held, Outcome::Failed).await;
            }
            db.execute("update fleet.tasks set run_at = now() where status = 'scheduled'").await;
            assert_eq!(store.promote_due_tasks(&operator()).await.unwrap(), 3);
            for held in &mut held {
                *held = pull(&store, session).await.unwrap();
            }
        }
        let [alone, among, failing] = held[..] else { panic!("{held:?}") };
        if started {
            for held in [&alone, &among] {
                store.start_task(held, &actor, json!({}), None).await.unwrap().unwrap();
            }
        }
        let pr = Artifact::Pr { url: "https://forge.test/pulls/1".into() };
        let completion = |held| {
            let mut end = completion(held);
            let receipt = end.receipt.as_mut().unwrap();
            receipt.artifacts.extend(opened.then(|| pr.clone()));
            receipt.usage = Some(Usage { input_tokens: Some(7), ..Usage::default() });
            end
        };
        let first = store.work(&[completion(alone)], Duration::ZERO, &[]).await.unwrap();
        let second = [ending(failing, Outcome::Failed), completion(among)];
        let second = store.work(&second, Duration::ZERO, &[]).await.unwrap();
        assert_eq!(first.ended[0], second.ended[1]);
        assert_eq!(shown(&first, alone), shown(&second, among));
        let (alone, among) = (picture(&db, alone).await, picture(&db, among).await);
        let wanted = if opened { "review_pending" } else { "completed" };
        assert_eq!(alone["task"]["status"], wanted);
        assert_eq!(alone["receipts"][0]["body"]["usage"]["input_tokens"], 7);
        // Unless that was its last attempt.
        let _ = store.cancel_task(failing.task_id, &operator(), None).await.unwrap();
        assert_eq!(alone, among, "started {started}, opened {opened}, repeated {repeated}");
    }
    db.check_history().await;
}

/// Of completions that come together, what is not held any more, or not worked on, does not keep the others from it.
#[tokio::test]
async fn completions_that_are_late_are_judged_beside_those_that_are_not() {
    let db = Db::new().await;
    let store = db.store();
    let session = agent(&store, "a", &[], 4).await;
    create(&store, task(&[], Mode::Undecided), 4).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pull(&store, session).await.unwrap());
    }
    let ended = complete(&store, held[0]).await;
    assert_eq!(ended, Ended::Now(Status::Completed));
    store.cancel_task(held[1].task_id, &operator(), None).await.unwrap().unwrap();
    // The forge has moved it on; its lease stays until the receipt.
    db.execute(&format!(
        "with moved as (update fleet.tasks set status = 'review_pending' where task_id = '{}' returning *)
         insert into fleet.task_events (task_id, type, from_status, to_status, actor, lease, attempt)
         select task_id, 'review_pending', 'assigned', status, 'forgejo:test', lease, attempt from moved",
        held[2].task_id
    ))
    .await;
    let ends: Vec<EndLease> = held.iter().map(|held| completion(*held)).collect();
    let worked = store.work(&ends, Duration::ZERO, &[]).await.unwrap();
    assert_eq!(
        worked.ended,
        [
            Ended::Before,
            Ended::Not(Refusal::LeaseLost),
            Ended::Now(Status::ReviewPending),
            Ended::Now(Status::Completed)
        ]
    );
    assert_eq!(worked.claims.tasks.len(), 4);
    db.check_history().await;
}

#[tokio::test]
async fn what_is_given_back_and_claimed_in_one_transaction_is_shown_as_it_is_held_now() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 1).await;
    let (a, b) = (agent(&store, "a", &[], 1).await, agent(&store, "b", &[], 1).await);
    let held = pull(&store, a).await.unwrap();
    // Else it reads on behind what was taken.
    store.ready_somewhere();
    let given_back = [ending(held, Outcome::Released)];
    let worked = store.work(&given_back, Duration::ZERO, &[Waiter::one(b)]).await.unwrap();
    assert_eq!(worked.ended, [Ended::Now(Status::Created)]);
    let [(0, task_id, lease)] = worked.claims.claimed[..] else { panic!("{worked:?}") };
    let task = &worked.claims.tasks[&task_id];
    assert_eq!((task_id, task.lease), (held.task_id, lease));
    assert_eq!((task.status, task.assigned_agent_id.as_deref()), (Status::Assigned, Some("b")));
    db.check_history().await;
}
