//! The DBA's views, each on known data.

use std::{collections::BTreeSet, time::Duration};

use agent_fleet::{
    model::{ExecutionMode, TaskId},
    store::{NewTask, Outcome, Store, StoreError, view_names},
};
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    fleet::{
        HOUR, agent, agent_for, complete, create, end, host, operator, pull, push, replica, task,
    },
};

const UNDECIDED: ExecutionMode = ExecutionMode::Undecided;

/// Rows of a query as JSON.
async fn json_rows(db: &Db, sql: &str) -> Vec<Value> {
    let rows = db.rows(&format!("select to_jsonb(x) from ({sql}) x"), &[]).await;
    rows.iter().map(|row| row.get(0)).collect()
}

/// The one row of a query as JSON.
async fn one(db: &Db, sql: &str) -> Value {
    let mut rows = json_rows(db, sql).await;
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.remove(0)
}

fn named(key: &str, labels: &[&str]) -> NewTask {
    NewTask { key: Some(key.into()), ..task(labels, UNDECIDED) }
}

async fn make(store: &Store, key: &str, labels: &[&str]) -> TaskId {
    create(store, named(key, labels), 1).await[0]
}

#[tokio::test]
async fn every_file_is_a_view_that_says_what_it_is_and_has_comments() {
    let db = Db::new().await;
    let listed: BTreeSet<String> = view_names().map(str::to_owned).collect();
    let files: BTreeSet<String> =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/views"))
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap().replace(".sql", ""))
            .collect();
    assert_eq!(listed, files);
    let views = db
        .rows(
            "select relname::text, obj_description(oid, 'pg_class') from pg_class
              where relnamespace = 'fleet'::regnamespace and relkind = 'v'",
            &[],
        )
        .await;
    let there: BTreeSet<String> = views.iter().map(|row| row.get(0)).collect();
    assert_eq!(there, files);
    for view in &views {
        let name: &str = view.get(0);
        assert!(view.get::<_, Option<&str>>(1).is_some(), "fleet.{name} has no comment");
        // Of an empty fleet.
        db.execute(&format!("select * from fleet.{name}")).await;
        let path = format!("{}/sql/views/{name}.sql", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        for header in ["-- Purpose:", "-- Index:"] {
            assert!(text.contains(header), "sql/views/{name}.sql lacks `{header}`");
        }
    }
    let bare = json_rows(
        &db,
        "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
          where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'v' and a.attnum > 0
            and col_description(c.oid, a.attnum) is null",
    )
    .await;
    assert!(bare.is_empty(), "columns without a comment: {bare:?}");
}

#[tokio::test]
async fn views_and_functions_are_part_of_the_schema() {
    let db = Db::empty().await;
    let store = db.store();
    assert!(store.migrate().await.unwrap().definitions);
    store.check_schema().await.unwrap();
    assert!(!store.migrate().await.unwrap().definitions, "once is enough");
    // A newer program has applied its own: this one is older now, and leaves them alone.
    let other = "drop view fleet.throughput; create view fleet.throughput as select 1 as one";
    db.execute(&format!("{other}; insert into fleet.definitions values ('newer', '9.9', now())"))
        .await;
    store.check_schema().await.unwrap();
    assert!(!store.migrate().await.unwrap().definitions);
    db.execute("select one from fleet.throughput").await;
    // Those of an older program are replaced, also where columns are others; what a DBA built on one of the rest stays.
    db.execute("create view mine as select agent_id from fleet.agent_load").await;
    db.execute("delete from fleet.definitions").await;
    match store.check_schema().await {
        Err(StoreError::Schema(why)) => assert!(why.contains("views and functions"), "{why}"),
        other => panic!("{other:?}"),
    }
    let refused = store.migrate().await.unwrap_err();
    assert!(format!("{refused:?}").contains("mine"), "it says what is in the way: {refused:?}");
    db.execute("select one from fleet.throughput").await;
    db.execute("drop view mine").await;
    assert!(store.migrate().await.unwrap().definitions);
    db.execute("select minute, created from fleet.throughput").await;
    store.check_schema().await.unwrap();
}

/// What is there in most of the tests: an agent that can do `agent:x`, and tasks of it and of what nobody can do.
async fn fleet(db: &Db) -> Store {
    let store = db.store();
    let a = agent(&store, "a", &["agent:x"], 3).await;
    make(&store, "done", &["agent:x"]).await;
    let held = pull(&store, a).await.unwrap();
    complete(&store, held).await;
    for key in ["fail-1", "fail-2"] {
        make(&store, key, &["agent:x"]).await;
        let held = pull(&store, a).await.unwrap();
        end(&store, held, Outcome::Failed).await;
    }
    make(&store, "held", &["agent:x"]).await;
    let held = pull(&store, a).await.unwrap();
    store.start_task(&held, &operator(), json!({}), None).await.unwrap().unwrap();
    for key in ["ready-1", "ready-2"] {
        make(&store, key, &["agent:x"]).await;
    }
    make(&store, "nobody", &["agent:y"]).await;
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let later = NewTask { run_at: Some(later), ..named("later", &["agent:x"]) };
    create(&store, later, 1).await;
    let pinned = make(&store, "pinned", &["agent:x"]).await;
    let reserved = Duration::from_secs(600);
    let pin = store.assign_task(pinned, "a", ExecutionMode::HttpPull, reserved, &operator()).await;
    pin.unwrap().unwrap();
    store
}

#[tokio::test]
async fn queue_depth_counts_what_has_not_ended() {
    let db = Db::new().await;
    fleet(&db).await;
    let rows = json_rows(
        &db,
        "select capabilities[1] as lane, execution_mode, status, tasks, waiting_reason, paused,
                oldest_age between interval '0' and interval '1 minute' as young
           from fleet.queue_depth order by 1, 2, 3",
    )
    .await;
    let row = |lane, mode, status, tasks, reason: Option<&str>| {
        json!({"lane": lane, "execution_mode": mode, "status": status, "tasks": tasks, "waiting_reason": reason,
               "paused": false, "young": true})
    };
    assert_eq!(
        rows,
        [
            row("agent:x", "http_pull", "assigned", 1, Some("pinned")),
            row("agent:x", "http_pull", "running", 1, None),
            row("agent:x", "undecided", "created", 2, Some("no_idle_agent")),
            row("agent:x", "undecided", "scheduled", 1, Some("scheduled")),
            row("agent:y", "undecided", "created", 1, Some("no_capable_agent")),
        ]
    );
    db.execute("update fleet.lanes set paused_at = now() where capabilities = '{agent:y}'").await;
    let paused = one(
        &db,
        "select waiting_reason, paused from fleet.queue_depth where capabilities = '{agent:y}'",
    )
    .await;
    assert_eq!(paused, json!({"waiting_reason": "paused", "paused": true}));
    // Leased, not pinned.
    db.execute("update fleet.tasks set status = 'assigned' where key = 'held'").await;
    let assigned = json_rows(
        &db,
        "select tasks, waiting_reason from fleet.queue_depth where status = 'assigned' order by 2",
    )
    .await;
    assert_eq!(
        assigned,
        [
            json!({"tasks": 1, "waiting_reason": "pinned"}),
            json!({"tasks": 1, "waiting_reason": null})
        ]
    );
    // What is in review is live, too.
    db.execute("update fleet.tasks set status = 'review_pending' where key = 'done'").await;
    let review =
        one(&db, "select tasks from fleet.queue_depth where status = 'review_pending'").await;
    assert_eq!(review["tasks"], 1);
}

#[tokio::test]
async fn waiting_tasks_have_the_reason_that_the_api_gives() {
    let db = Db::new().await;
    let store = fleet(&db).await;
    create(
        &store,
        NewTask { execution_mode: ExecutionMode::SshCli, ..named("ssh", &["agent:x"]) },
        1,
    )
    .await;
    let rows =
        json_rows(&db, "select task_id, key, title, waiting_reason from fleet.waiting_tasks").await;
    let mut found = BTreeSet::new();
    for row in &rows {
        let id = TaskId(row["task_id"].as_str().unwrap().parse().unwrap());
        let task = store.get_task(id).await.unwrap().unwrap();
        assert_eq!(row["waiting_reason"], json!(task.waiting_reason), "{row}");
        assert_eq!(row["title"], "a task");
        found.insert((row["key"].as_str().unwrap(), row["waiting_reason"].as_str().unwrap()));
    }
    let wanted = [
        ("later", "scheduled"),
        ("nobody", "no_capable_agent"),
        ("pinned", "pinned"),
        ("ready-1", "no_idle_agent"),
        ("ready-2", "no_idle_agent"),
        ("ssh", "no_capable_agent"),
    ];
    assert_eq!(found, BTreeSet::from(wanted));
    let reasons = json_rows(
        &db,
        "select execution_mode, waiting_reason from fleet.lane_reasons where capabilities = '{agent:x}' order by 1",
    )
    .await;
    let reason = |mode, reason| json!({"execution_mode": mode, "waiting_reason": reason});
    assert_eq!(
        reasons,
        [
            reason("http_pull", "no_idle_agent"),
            reason("ssh_cli", "no_capable_agent"),
            reason("undecided", "no_idle_agent")
        ]
    );
}

#[tokio::test]
async fn running_tasks_show_who_holds_what() {
    let db = Db::new().await;
    let store = fleet(&db).await;
    let (boot, slots) = replica(&store, "r", &[host("h", &["agent:h"], 1)]).await;
    make(&store, "on-host", &["agent:h"]).await;
    assert_eq!(push(&store, boot, &[slots["h"]]).await.len(), 1);
    db.execute("update fleet.sessions set last_heartbeat_at = now() - interval '5 minutes' where kind = 'replica'")
        .await;
    let rows = json_rows(
        &db,
        "select key, status, holder_kind, holder, replica_id, lease, attempt, lease_age < interval '1 minute' as young,
                time_left > interval '58 minutes' as long, silence > interval '4 minutes' as silent, holder_lives,
                running_for is not null as started
           from fleet.running_tasks order by key",
    )
    .await;
    assert_eq!(
        rows,
        [
            json!({"key": "held", "status": "running", "holder_kind": "agent", "holder": "a", "replica_id": null,
                   "lease": 1, "attempt": 1, "young": true, "long": true, "silent": false, "holder_lives": true,
                   "started": true}),
            json!({"key": "on-host", "status": "assigned", "holder_kind": "host", "holder": "h/ok", "replica_id": "r",
                   "lease": 1, "attempt": 1, "young": true, "long": true, "silent": true, "holder_lives": true,
                   "started": false}),
        ]
    );
}

#[tokio::test]
async fn stuck_tasks_are_those_that_do_not_move() {
    let db = Db::new().await;
    let store = fleet(&db).await;
    let none = json_rows(&db, "select * from fleet.stuck_tasks").await;
    assert!(none.is_empty(), "{none:?}");
    let gone = agent_for(&store, "gone", &["agent:gone"], 1, Duration::from_secs(1)).await;
    make(&store, "gone", &["agent:gone"]).await;
    pull(&store, gone).await.unwrap();
    make(&store, "review", &["agent:x"]).await;
    db.execute(
        "update fleet.sessions set last_heartbeat_at = now() - interval '1 hour' where subject = 'gone';
         update fleet.tasks set ready_at = now() - interval '1 hour' where key = 'nobody';
         update fleet.tasks set run_at = now() - interval '2 minutes' where key = 'later';
         update fleet.tasks set pinned_until = now() - interval '2 minutes' where key = 'pinned';
         update fleet.tasks set status = 'review_pending', last_activity_at = now() - interval '8 days' where key = 'review';
         update fleet.tasks set last_activity_at = now() - interval '2 hours' where key = 'held';
         update fleet.tasks set lane_id = null, ready_at = now() - interval '2 minutes' where key = 'ready-2'",
    )
    .await;
    let rows = json_rows(&db, "select key, problem from fleet.stuck_tasks order by 1, 2").await;
    let found: Vec<_> =
        rows.iter().map(|r| (r["key"].as_str().unwrap(), r["problem"].as_str().unwrap())).collect();
    assert_eq!(
        found,
        [
            ("gone", "holder_gone"),
            ("held", "no_sign_of_life"),
            ("later", "overdue"),
            ("nobody", "nobody_can"),
            ("pinned", "pin_overdue"),
            ("ready-2", "no_lane"),
            ("review", "review_waits"),
        ]
    );
    db.execute(
        "update fleet.tasks set deadline_at = now() - interval '3 minutes' where key = 'held'",
    )
    .await;
    let late = one(
        &db,
        "select stuck_for between interval '3 minutes' and interval '4 minutes' as fits, holder
           from fleet.stuck_tasks where problem = 'past_deadline'",
    )
    .await;
    assert_eq!(late, json!({"fits": true, "holder": "a"}));
}

#[tokio::test]
async fn loads_and_replicas() {
    let db = Db::new().await;
    let store = fleet(&db).await;
    let (boot, slots) =
        replica(&store, "r", &[host("h", &["agent:h"], 2), host("off", &[], 1)]).await;
    make(&store, "on-host", &["agent:h"]).await;
    push(&store, boot, &[slots["h"]]).await;
    let to_host = make(&store, "to-host", &["agent:h"]).await;
    let pin = store.assign_task(to_host, "h/ok", ExecutionMode::SshCli, HOUR, &operator()).await;
    pin.unwrap().unwrap();
    db.execute(
        "update fleet.replica_hosts set online = host_id = 'h', reason = case when host_id = 'off' then 'no route' end,
                checked_at = now()",
    )
    .await;
    agent(&store, "b", &[], 2).await;
    db.execute("update fleet.agents set drained_at = now() where agent_id = 'b'").await;
    let agents = json_rows(
        &db,
        "select agent_id, status, slots, leased, free, pinned, silence < interval '1 minute' as heard from fleet.agent_load
          order by 1",
    )
    .await;
    assert_eq!(
        agents,
        [
            json!({"agent_id": "a", "status": "online", "slots": 3, "leased": 1, "free": 2, "pinned": 1, "heard": true}),
            json!({"agent_id": "b", "status": "draining", "slots": 2, "leased": 0, "free": 0, "pinned": 0, "heard": true}),
        ]
    );
    let hosts = "select host_id, agent_type, status, reason, slots, running, free, pinned, reached_by, parked_reason
                   from fleet.host_load order by 1";
    assert_eq!(
        json_rows(&db, hosts).await,
        [
            json!({"host_id": "h", "agent_type": "ok", "status": "online", "reason": null, "slots": 2, "running": 1,
                   "free": 1, "pinned": 1, "reached_by": ["r"], "parked_reason": null}),
            json!({"host_id": "off", "agent_type": "ok", "status": "offline", "reason": "no route", "slots": 1,
                   "running": 0, "free": 0, "pinned": 0, "reached_by": null, "parked_reason": null}),
        ]
    );
    db.execute("update fleet.host_agents set parked_until = now() + interval '1 hour', parked_reason = 'quota'").await;
    assert_eq!(json_rows(&db, hosts).await[0]["free"], 0, "parked");
    let replicas = "select replica_id, status, runs, hosts, hosts_online from fleet.replica_status";
    let live =
        json!({"replica_id": "r", "status": "live", "runs": 1, "hosts": 2, "hosts_online": 1});
    assert_eq!(one(&db, replicas).await, live);
    db.execute("update fleet.sessions set last_heartbeat_at = now() - interval '2 hours' where kind = 'replica'").await;
    assert_eq!(one(&db, replicas).await["status"], "silent");
    db.execute(
        "update fleet.sessions set ended_at = now(), end_reason = 'stopped' where kind = 'replica'",
    )
    .await;
    assert_eq!(one(&db, replicas).await["status"], "ended");
    assert_eq!(json_rows(&db, hosts).await[0]["status"], "disabled");
}

#[tokio::test]
async fn throughput_latency_and_failures_are_the_event_log() {
    let db = Db::new().await;
    fleet(&db).await;
    let sums = one(
        &db,
        "select count(*) as minutes, sum(created) as created, sum(claimed) as claimed, sum(completed) as completed,
                sum(failed) as failed, sum(lost) as lost from fleet.throughput",
    )
    .await;
    let wanted =
        json!({"minutes": 60, "created": 9, "claimed": 4, "completed": 1, "failed": 2, "lost": 0});
    assert_eq!(sums, wanted);
    db.execute(
        "update fleet.tasks set created_at = '2030-01-01 00:00:00Z', assigned_at = '2030-01-01 00:00:02Z',
                                completed_at = '2030-01-01 00:00:12Z' where key = 'done'",
    )
    .await;
    let latency =
        one(&db, "select tasks, waited_p50, worked_p95, total_p99 from fleet.latency").await;
    assert_eq!(latency, json!({"tasks": 1, "waited_p50": 2, "worked_p95": 10, "total_p99": 12}));
    let failures =
        one(&db, "select type, reason, attempts, tasks, final, last_key from fleet.failures").await;
    assert_eq!(
        failures,
        json!({"type": "failed", "reason": "test", "attempts": 2, "tasks": 2, "final": 2, "last_key": "fail-2"})
    );
}

#[tokio::test]
async fn a_timeline_is_the_life_of_one_task() {
    let db = Db::new().await;
    fleet(&db).await;
    let rows = json_rows(
        &db,
        "select type, from_status, to_status, actor, lease, after is null as first, since_created >= interval '0' as later
           from fleet.task_timeline where key = 'held' order by event_id",
    )
    .await;
    let words: Vec<_> = rows
        .iter()
        .map(|r| (r["type"].as_str().unwrap(), r["to_status"].as_str().unwrap()))
        .collect();
    assert_eq!(words, [("created", "created"), ("claimed", "assigned"), ("started", "running")]);
    assert_eq!(rows.iter().filter(|r| r["first"] == true).count(), 1);
    assert_eq!(rows[2]["lease"], 1);
}

#[tokio::test]
async fn the_forge_s_views() {
    let db = Db::new().await;
    let store = fleet(&db).await;
    let none = json_rows(&db, "select * from fleet.forge_backlog").await;
    assert!(none.is_empty(), "{none:?}");
    db.execute(
        "insert into fleet.webhook_deliveries (delivery_id, body_hash, event, action, result, received_at)
         values ('1', '', 'issues', 'opened', 'created', now()), ('2', '', 'issues', 'opened', 'created', now()),
                ('3', '', 'issues', 'opened', 'created', now() - interval '3 days');
         insert into fleet.forge_outbox (task_id, kind, payload, tries, not_before)
         values (fleet.uuid_v7(), 'comment', '{}', 3, now() + interval '1 hour'), (fleet.uuid_v7(), 'comment', '{}', 0, now());
         insert into fleet.forge_issues (key, version, updated_at, body_hash, state) values ('held', 2, now(), '', '{}');
         update fleet.tasks set source = 'forgejo', issue_version = 1 where key = 'held'",
    )
    .await;
    let webhooks =
        one(&db, "select event, action, result, deliveries from fleet.webhook_activity").await;
    assert_eq!(
        webhooks,
        json!({"event": "issues", "action": "opened", "result": "created", "deliveries": 2})
    );
    let backlog = json_rows(
        &db,
        "select direction, kind, items, due, tried, most_tries from fleet.forge_backlog order by 1",
    )
    .await;
    assert_eq!(
        backlog,
        [
            json!({"direction": "from_forge", "kind": "issue", "items": 1, "due": 0, "tried": 0, "most_tries": 0}),
            json!({"direction": "to_forge", "kind": "comment", "items": 2, "due": 1, "tried": 1, "most_tries": 3}),
        ]
    );
    drop(store);
}

#[tokio::test]
async fn storage_adds_partitions_up() {
    let db = Db::new().await;
    fleet(&db).await;
    db.execute("vacuum analyze fleet.tasks, fleet.task_events").await;
    let tasks = one(
        &db,
        "select partitions, rows_estimated, total_bytes > 0 as large, last_vacuum is not null as vacuumed
           from fleet.storage where table_name = 'tasks'",
    )
    .await;
    assert_eq!(
        tasks,
        json!({"partitions": 0, "rows_estimated": 9, "large": true, "vacuumed": true})
    );
    let events = one(
        &db,
        "select rows_estimated, partitions = (select count(*) from pg_inherits where inhparent = 'fleet.task_events'::regclass)
                as all from fleet.storage where table_name = 'task_events'",
    )
    .await;
    let count = db.count("select count(*) from fleet.task_events").await;
    assert_eq!(events, json!({"rows_estimated": count, "all": true}));
}

#[tokio::test]
async fn blockers_name_who_is_in_the_way() {
    let db = Db::new().await;
    fleet(&db).await;
    let none = json_rows(&db, "select * from fleet.blockers where role is not null").await;
    assert!(none.is_empty(), "{none:?}");
    let (mut holder, waiter) = (db.connect().await, db.connect().await);
    let pid = async |client: &tokio_postgres::Client| -> i32 {
        client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
    };
    let (held_by, waits) = (pid(&holder).await, pid(&waiter).await);
    let tx = holder.transaction().await.unwrap();
    tx.batch_execute("lock table fleet.lanes in access exclusive mode").await.unwrap();
    let waiting =
        tokio::spawn(async move { waiter.batch_execute("select from fleet.lanes").await });
    let row = crate::support::eventually("it waits", async || {
        json_rows(&db, "select problem, pid, waits_for, on_table from fleet.blockers where waits_for is not null")
            .await
            .pop()
    })
    .await;
    assert_eq!(
        row,
        json!({"problem": "waits_for_lock", "pid": waits, "waits_for": [held_by], "on_table": "fleet.lanes"})
    );
    tx.commit().await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_reason_of_a_lane_is_that_of_its_tasks() {
    let db = Db::new().await;
    let store = fleet(&db).await;
    let hosts = [("on", "agent:on"), ("away", "agent:away"), ("parked", "agent:parked")]
        .map(|(id, offers)| host(id, &[offers, "agent:hosts"], 1));
    replica(&store, "r", &hosts).await;
    db.execute(
        "update fleet.replica_hosts set online = host_id <> 'away', checked_at = now();
         update fleet.host_agents set parked_until = now() + interval '1 hour' where host_id = 'parked'",
    )
    .await;
    for label in ["on", "away", "parked", "hosts", "stopped"] {
        make(&store, label, &[&format!("agent:{label}")]).await;
    }
    db.execute("update fleet.lanes set paused_at = now() where capabilities = '{agent:stopped}'")
        .await;
    let rows = db
        .rows(
            "select waiting_reason, fleet.waiting_reason('created', execution_mode, null, capabilities, lane_id) as asked,
                    capabilities || execution_mode as lane
               from fleet.lane_reasons",
            &[],
        )
        .await;
    let mut reasons: BTreeSet<String> = BTreeSet::new();
    for row in &rows {
        let (reason, asked): (String, String) = (row.get("waiting_reason"), row.get("asked"));
        assert_eq!(reason, asked, "{:?}", row.get::<_, Vec<String>>("lane"));
        reasons.insert(reason);
    }
    let all = ["host_offline", "no_capable_agent", "no_idle_agent", "paused", "quota"];
    assert_eq!(reasons, all.map(str::to_owned).into());
}
