//! What a process remembers of where ready tasks are: it spares reads, and hides nothing.

use agent_fleet::{
    model::ExecutionMode as Mode,
    store::{Store, Waiter},
};

use crate::support::{
    db::Db,
    eventually,
    fleet::{agent, create, task},
};

/// Claims so many for a session, by what the store remembers.
async fn claim(store: &Store, waiter: &Waiter, many: usize) -> usize {
    let waiter = Waiter { max_tasks: many, claim_id: uuid::Uuid::now_v7(), ..waiter.clone() };
    store.claim_for_agents(&[waiter], false).await.unwrap().claimed.len()
}

#[tokio::test]
async fn what_was_taken_is_not_read_again_while_an_old_snapshot_is_open() {
    let db = Db::new().await;
    let store = db.store();
    create(&store, task(&[], Mode::Undecided), 700).await;
    let waiter = Waiter::one(agent(&store, "a", &[], 1_000).await);
    // From now on no dead entry can be taken out of the index.
    let mut other = db.connect().await;
    let tx = other
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .start()
        .await
        .unwrap();
    tx.query("select 1 from fleet.tasks limit 1", &[]).await.unwrap();
    for _ in 0..5 {
        assert_eq!(claim(&store, &waiter, 100).await, 100);
    }
    for _ in 0..40 {
        assert_eq!(claim(&store, &waiter, 1).await, 1);
    }
    // A backend that ends has counted what it read.
    store.close();
    eventually("the store's connections are gone", async || {
        let others = "select count(*) from pg_stat_activity
                       where datname = current_database() and application_name like 'agent-fleet/%'";
        (db.count(others).await == 0).then_some(())
    })
    .await;
    let read =
        "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'tasks_ready_pull'";
    let read = db.count(read).await;
    // Each time from the start it would have been more than 20,000.
    assert!((540..5_000).contains(&read), "{read} index entries for 540 tasks");
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn what_becomes_ready_below_a_mark_is_found_by_hint_or_by_the_poll() {
    let db = Db::new().await;
    let (store, elsewhere) = (db.store(), db.store());
    let first = create(&store, task(&[], Mode::Undecided), 2).await[0];
    let waiter = Waiter::one(agent(&store, "a", &[], 9).await);
    assert_eq!(claim(&store, &waiter, 1).await, 1);
    assert_eq!(claim(&store, &waiter, 9).await, 1);
    assert_eq!(claim(&store, &waiter, 9).await, 0, "all is taken, and that is remembered");
    // Another process gives the first one back, and this one is not told.
    elsewhere.cancel_task(first, &crate::support::fleet::operator(), None).await.unwrap().unwrap();
    elsewhere.retry_task(first, &crate::support::fleet::operator(), None).await.unwrap().unwrap();
    assert_eq!(claim(&store, &waiter, 9).await, 0, "what no hint told is hidden until the poll");
    assert!(store.look_below(&[waiter.session]).await.unwrap().is_empty(), "no pin");
    assert_eq!(claim(&store, &waiter, 9).await, 1);
    assert_eq!(claim(&store, &waiter, 9).await, 0);
    // A new one of which nobody told, until somebody says that there is something.
    create(&elsewhere, task(&[], Mode::Undecided), 1).await;
    assert_eq!(claim(&store, &waiter, 9).await, 0);
    store.ready_somewhere();
    assert_eq!(claim(&store, &waiter, 9).await, 1);
    // Who does not want to wait is looked for everywhere.
    create(&elsewhere, task(&[], Mode::Undecided), 1).await;
    let claims = store.claim_for_agents(&[waiter], true).await.unwrap();
    assert_eq!(claims.claimed.len(), 1);
    db.check_history().await;
}
