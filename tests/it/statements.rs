//! The SQL itself: every file is prepared against the migrated schema, and the claims and holder writes use their index.

use std::collections::BTreeSet;

use agent_fleet::store::STATEMENTS;

use crate::support::db::{Db, sql};

#[tokio::test]
async fn every_file_is_prepared_and_none_is_missing() {
    let db = Db::new().await;
    for statement in STATEMENTS {
        if let Err(error) = db.client.prepare(statement.text).await {
            panic!("sql/{}.sql: {:?}", statement.name, error);
        }
        for header in ["-- Purpose:", "-- Locks:", "-- Index:"] {
            assert!(statement.text.contains(header), "sql/{}.sql lacks `{header}`", statement.name);
        }
    }
    let listed: BTreeSet<String> = STATEMENTS.iter().map(|s| s.name.to_owned()).collect();
    let files: BTreeSet<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql"))
        .unwrap()
        .filter_map(|f| {
            f.unwrap().file_name().into_string().unwrap().strip_suffix(".sql").map(str::to_owned)
        })
        .collect();
    assert_eq!(listed, files);
}

/// Rows of tasks are read by place.
#[tokio::test]
async fn every_statement_that_shows_tasks_has_the_same_columns_in_the_same_order() {
    let db = Db::new().await;
    let mut columns: Vec<Vec<String>> = Vec::new();
    for name in [
        "get_tasks",
        "list_tasks",
        "claim_pull_3_take",
        "claim_pull_at_once",
        "claim_pull_next",
        "end_leases",
        "complete_leases",
    ] {
        let prepared = db.client.prepare(sql(name)).await.unwrap();
        let names: Vec<String> = prepared.columns().iter().map(|c| c.name().to_owned()).collect();
        // What the statement says besides comes first.
        let begin = names.iter().rposition(|name| name == "task_id").unwrap();
        columns.push(names[begin..].to_vec());
    }
    assert_eq!(columns[1].as_slice(), columns[0].split_last().unwrap().1, "a list has no bodies");
    assert_eq!(columns[0].last().unwrap(), "body");
    for shown in &columns[2..] {
        assert_eq!(shown, &columns[0]);
    }
}

/// The plan of a statement with its parameters written in, as `prepare` would have it from the sixth time on: generic.
async fn plan(db: &Db, name: &str, values: &str) -> String {
    db.execute("set plan_cache_mode = force_generic_plan; deallocate all").await;
    db.execute(&format!("prepare explained as {}", sql(name))).await;
    let rows = db.rows(&format!("explain (costs off) execute explained({values})"), &[]).await;
    rows.iter().map(|r| r.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
}

/// 100,000 tasks in 200 lanes, and statistics that know nothing of them: taken while the table was empty.
async fn stale_backlog() -> Db {
    let db = Db::new().await;
    db.execute(
        "analyze fleet.tasks; analyze fleet.lanes; analyze fleet.task_specs;
         alter table fleet.tasks set (autovacuum_enabled = off);
         insert into fleet.lanes (capabilities) select array['agent:' || to_char(n, 'FM000')] from generate_series(1, 200) n;
         insert into fleet.tasks (key, lane_id, status, execution_mode, created_mode)
         select 'k' || n, 1 + n % 200, 'created', (array['undecided', 'http_pull', 'ssh_cli'])[1 + n % 3],
                (array['undecided', 'http_pull', 'ssh_cli'])[1 + n % 3]
           from generate_series(1, 100000) n",
    )
    .await;
    db
}

/// Parameters of a claim in one statement.
const AT_ONCE: &str =
    "array[1], array[1], array[0], gen_random_uuid(), 'a', gen_random_uuid(), gen_random_uuid()";

/// Parameters of a completion and the next claim in one statement.
const NEXT: &str = "array[gen_random_uuid()], array[1], array[gen_random_uuid()], array['a'], array['{}'::jsonb],
    array['x'::bytea], array[null::text], array[gen_random_uuid()], array[1], array[1], array[0], array[0], gen_random_uuid()";

#[tokio::test]
async fn claims_use_their_partial_index_with_stale_statistics() {
    let db = stale_backlog().await;
    let ranges = "array[1, 1], array[2, 3], array[1, 1], array[0, 0]";
    for (name, index, values) in [
        ("claim_pull_2_ready", "tasks_ready_pull", format!("{ranges}, 10")),
        ("claim_pull_at_once", "tasks_ready_pull", AT_ONCE.to_owned()),
        ("claim_pull_next", "tasks_ready_pull", NEXT.to_owned()),
        ("find_ready_below", "tasks_ready_pull", "array[2], array[1], array[99]".to_owned()),
        (
            "claim_push_2_ready",
            "tasks_ready_push",
            r#"'[["agent:001", "agent:002"]]', 10"#.to_owned(),
        ),
    ] {
        let plan = plan(&db, name, &values).await;
        assert!(plan.contains(&format!("using {index}")), "{name}:\n{plan}");
        assert!(!plan.contains("Seq Scan on tasks"), "{name}:\n{plan}");
    }
    for (name, values) in [
        (
            "claim_pull_3_take",
            "array[gen_random_uuid()], array[gen_random_uuid()], array['a'], array[gen_random_uuid()], array[1]",
        ),
        (
            "claim_push_3_take",
            "array[gen_random_uuid()], array[1], gen_random_uuid(), 'x', array[1]",
        ),
        ("claim_pull_at_once", AT_ONCE),
        ("claim_pull_next", NEXT),
    ] {
        let plan = plan(&db, name, values).await;
        assert!(
            plan.contains("tasks_pkey") && !plan.contains("Seq Scan on tasks"),
            "{name}:\n{plan}"
        );
    }
    for (name, values) in [
        ("claim_pull_2_held", "array[gen_random_uuid()]"),
        ("claim_pull_2_pinned", "array['a'], 1"),
        ("claim_push_2_count", "array[1]"),
        ("claim_push_2_pinned", "array['h'], 1"),
        ("list_session_leases", "gen_random_uuid()"),
        ("list_own_runs", "gen_random_uuid()"),
    ] {
        let plan = plan(&db, name, values).await;
        assert!(
            plan.contains("tasks_held") && !plan.contains("Seq Scan on tasks"),
            "{name}:\n{plan}"
        );
    }
}

/// 10,000 tasks that are done, and statistics of a moment when nothing is ready or held; sessions as a replica has them.
async fn all_done() -> Db {
    let db = Db::new().await;
    db.execute(
        "insert into fleet.tasks (status) select 'completed' from generate_series(1, 10000);
         analyze fleet.tasks; set enable_seqscan = off",
    )
    .await;
    db
}

/// By statistics of a moment with no ready task, their index looks as good to read as one row.
#[tokio::test]
async fn a_claim_in_one_statement_takes_its_rows_by_their_ids_also_when_none_was_ready() {
    let db = all_done().await;
    for (name, values) in [("claim_pull_at_once", AT_ONCE), ("claim_pull_next", NEXT)] {
        let plan = plan(&db, name, values).await;
        assert_eq!(plan.matches("using tasks_ready_pull").count(), 1, "{plan}");
        assert_eq!(plan.matches("using tasks_pkey").count(), 2, "{plan}");
        assert!(
            plan.contains("using sessions_pkey") && plan.contains("using agents_pkey"),
            "{plan}"
        );
    }
}

#[tokio::test]
async fn sessions_are_locked_for_a_claim_by_their_ids_also_by_a_plan_made_for_few() {
    let db = Db::new().await;
    // As a replica's sessions have it.
    db.execute("analyze fleet.sessions; analyze fleet.agents; set enable_seqscan = off").await;
    let plan = plan(&db, "claim_pull_1_lock", "array[gen_random_uuid()]").await;
    assert!(plan.contains("using sessions_pkey") && !plan.contains("sessions_live"), "{plan}");
}

/// The looks for what is due, with parameters.
const DUE: [(&str, &str); 4] = [
    ("promote_due_tasks", "10, 'a'"),
    ("expire_pins", "10, 'a'"),
    ("list_expired_leases", "60, 10"),
    ("read_due", "60"),
];

#[tokio::test]
async fn holder_writes_find_their_row_by_primary_key() {
    let db = stale_backlog().await;
    // The index of what is held is small, and tempting.
    db.execute(
        "update fleet.tasks set status = 'assigned', holder = gen_random_uuid(), deadline_at = now() where seq <= 5;
         update fleet.tasks set status = 'assigned', pinned_to = 'a', pinned_until = now() where seq between 6 and 9",
    )
    .await;
    let id = "gen_random_uuid()";
    for (name, values) in [
        (
            "start_task",
            format!(
                "array[{id}], array[1], array[{id}], array['a'], array['{{}}'::jsonb], array[null::integer]"
            ),
        ),
        (
            "end_leases",
            format!(
                "array[{id}], array[1], array[{id}], array['lost'], array['x'], array[0], array[null::jsonb], \
                 array[null::bytea], array['a'], array[null], array[0], 1"
            ),
        ),
        (
            "complete_leases",
            format!(
                "array[{id}], array[1], array[{id}], array['{{}}'::jsonb], array['\\x00'::bytea], array['a'], \
                 array[null], array[0]"
            ),
        ),
        ("lock_lease", id.to_owned()),
        ("cancel_task", format!("{id}, 'a', null")),
        ("append_run_output", format!("{id}, 1, 1, {id}, 0, '\\x00'")),
        ("insert_run", format!("{id}, 1, {id}, array['true'], 'stdin', 'raw', '/', 60")),
        ("keep_claims", format!("array[{id}], array[1], array[{id}]")),
        ("resume_leases", format!("array[{id}], array[{id}], {id}, 'a'")),
        ("park_host_agent", format!("{id}, 1, {id}, null, 'x'")),
        ("retry_task", format!("{id}, 'a', null, 'retried'")),
        ("assign_task", format!("{id}, 'a', 'http_pull', 1, 'a'")),
        ("complete_by_forge", format!("{id}, 'a', null")),
        (
            "update_spec",
            format!("{id}, 't', 'b', array['l'], array['agent:x'], '{{}}', 'u', 1, 'a'"),
        ),
        ("set_issue_applied", format!("{id}, 1, true")),
    ] {
        let plan = plan(&db, name, &values).await;
        assert!(plan.contains("tasks_pkey"), "{name}:\n{plan}");
        assert!(!plan.contains("Seq Scan on tasks"), "{name}:\n{plan}");
        assert!(!plan.contains("tasks_held") && !plan.contains("tasks_ready"), "{name}:\n{plan}");
    }
    for (name, values) in DUE {
        let plan = plan(&db, name, values).await;
        assert!(plan.contains("tasks_due"), "{name}:\n{plan}");
    }
}

/// What has been held leaves entries until vacuum has been there, and by statistics of a moment when nothing is held their index
/// looks empty.
#[tokio::test]
async fn what_has_been_held_is_not_read_for_what_is_due_or_held_now() {
    let db = all_done().await;
    for (name, values) in DUE {
        let plan = plan(&db, name, values).await;
        assert!(plan.contains("tasks_due") && !plan.contains("tasks_held"), "{name}:\n{plan}");
    }
    let id = "array[gen_random_uuid()]";
    for (name, values) in [
        ("claim_pull_2_held", id.to_owned()),
        ("beat_agents", format!("{id}, array[true], array[0], {id}, {id}")),
        ("list_session_leases", "gen_random_uuid()".to_owned()),
    ] {
        let plan = plan(&db, name, &values).await;
        assert!(plan.contains("(host_agent_id IS NULL) AND (holder = "), "{name}:\n{plan}");
    }
}

#[tokio::test]
async fn a_claim_behind_a_foreign_backlog_reads_few_pages() {
    let db = stale_backlog().await;
    // The caller's two lanes come last in the index, behind 100,000 tasks that it cannot take.
    db.execute(
        "insert into fleet.lanes (capabilities) values (array['agent:mine']), (array['agent:too']);
         insert into fleet.tasks (key, lane_id)
         select 'mine', lane_id from fleet.lanes where capabilities = array['agent:mine']",
    )
    .await;
    db.execute(&format!("prepare counted as {}", sql("claim_pull_2_ready"))).await;
    let lanes = "select array_agg(lane_id)::text from fleet.lanes where capabilities[1] in ('agent:mine', 'agent:too')";
    let lanes: String = db.rows(lanes, &[]).await[0].get(0);
    let explain = format!(
        "explain (analyze, buffers, format json) execute counted(array[1, 1], '{lanes}', array[1, 1], array[0, 0], 1)"
    );
    let rows = db.rows(&explain, &[]).await;
    let plan: serde_json::Value = rows[0].get(0);
    let plan = &plan[0]["Plan"];
    let pages =
        plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap();
    assert!(pages < 100, "{pages} pages for one claim");
}
