//! The roles: the coordinator has what it needs and no more, readers read and nothing else. Every other test runs as
//! `fleet_app` too: see `support::db`.

use std::collections::BTreeSet;

use agent_fleet::store::STATEMENTS;
use futures_util::future::join_all;

use crate::support::db::Db;

/// The SQLSTATE with which a statement is refused to a role.
async fn refused(db: &Db, role: &str, sql: &str) -> String {
    let client = db.connect().await;
    client.batch_execute(&format!("set role {role}")).await.unwrap();
    match client.batch_execute(sql).await {
        Ok(()) => panic!("{role} may: {sql}"),
        Err(error) => error.as_db_error().unwrap().code().code().to_owned(),
    }
}

#[tokio::test]
async fn making_the_roles_is_safe_to_repeat_and_to_race() {
    let db = Db::new().await;
    let racing = join_all((0..4).map(|_| {
        let store = db.owners_store();
        tokio::spawn(async move { store.make_roles().await })
    }))
    .await;
    for one in racing {
        one.unwrap().unwrap();
    }
    let owners = db
        .rows(
            "select distinct pg_get_userbyid(relowner)::text, relname ~ '^task_(events|logs)' from pg_class
              where relnamespace = 'fleet'::regnamespace and relkind in ('r', 'p', 'v') order by 1",
            &[],
        )
        .await;
    let owners: Vec<(String, bool)> = owners.iter().map(|r| (r.get(0), r.get(1))).collect();
    assert_eq!(owners, [("fleet_maintenance".to_owned(), true), ("fleet_owner".to_owned(), false)]);
    let logins = db.count("select count(*) from pg_roles where rolname like 'fleet\\_%' and (rolcanlogin or rolsuper)").await;
    assert_eq!(logins, 0);
}

#[tokio::test]
async fn fleet_app_may_run_every_statement() {
    let db = Db::new().await;
    let client = db.connect().await;
    client
        .batch_execute("set role fleet_app; set plan_cache_mode = force_generic_plan")
        .await
        .unwrap();
    // These are the owner's: a replica with less leaves the vacuum to autovacuum.
    let owners = ["make_roles", "insert_definitions", "vacuum_tasks"];
    for statement in STATEMENTS.iter().filter(|s| !owners.contains(&s.name)) {
        let types = client.prepare(statement.text).await.unwrap();
        let nulls: Vec<String> = types
            .params()
            .iter()
            .map(|t| {
                format!(
                    "null::{}",
                    t.name().replace("_", "").replace("float8", "double precision")
                        + if t.name().starts_with('_') { "[]" } else { "" }
                )
            })
            .collect();
        let values =
            if nulls.is_empty() { String::new() } else { format!("({})", nulls.join(", ")) };
        let name = format!("s_{}", statement.name);
        client.batch_execute(&format!("prepare {name} as {}", statement.text)).await.unwrap();
        // EXPLAIN checks rights as running would, and runs nothing.
        if let Err(error) = client.batch_execute(&format!("explain execute {name}{values}")).await {
            panic!("sql/{}.sql: {error:?}", statement.name);
        }
    }
}

#[tokio::test]
async fn fleet_app_has_no_right_that_no_statement_uses() {
    let db = Db::new().await;
    let grants = db
        .rows(
            "select table_name::text, privilege_type::text from information_schema.role_table_grants
              where grantee = 'fleet_app' and table_schema = 'fleet'
                and table_name in (select relname from pg_class where relkind in ('r', 'p') and relnamespace = 'fleet'::regnamespace)",
            &[],
        )
        .await;
    assert!(!grants.is_empty());
    for row in &grants {
        let (table, right): (&str, &str) = (row.get(0), row.get(1));
        // Refinery reads its history by itself.
        if table == "schema_history" || table == "definitions" {
            assert_eq!(right, "SELECT");
            continue;
        }
        let named = |word: &str| {
            let whole = format!("{word}fleet.{table}");
            STATEMENTS.iter().filter(move |s| {
                s.text.match_indices(&whole).any(|(at, _)| {
                    !s.text[at + whole.len()..]
                        .starts_with(|c: char| c.is_alphanumeric() || c == '_')
                })
            })
        };
        let used = match right {
            "SELECT" => named("").next().is_some(),
            "INSERT" => named("insert into ").next().is_some(),
            "DELETE" => named("delete from ").next().is_some(),
            "UPDATE" => {
                named("update ").next().is_some()
                    || named("insert into ").any(|s| s.text.contains("do update"))
                    || named("").any(|s| {
                        s.text.contains("for update") || s.text.contains("for no key update")
                    })
            }
            other => panic!("fleet_app has {other} on {table}"),
        };
        assert!(used, "fleet_app has {right} on fleet.{table}, which no statement uses");
    }
}

#[tokio::test]
async fn fleet_app_changes_no_schema_but_partitions() {
    let db = Db::new().await;
    for sql in [
        "alter table fleet.tasks add column x int",
        "drop table fleet.receipts",
        "drop view fleet.queue_depth",
        "create index on fleet.tasks (priority)",
        "truncate fleet.task_specs",
        "create table public.x ()",
        "create schema x",
        "create role x",
        "update fleet.task_events set actor = 'x'",
        "delete from fleet.task_events",
        "update fleet.identity set fleet_id = gen_random_uuid()",
        "insert into fleet.schema_history select * from fleet.schema_history",
        "select fleet.apply_grants()",
    ] {
        // Owning a table is more than having a right; dropping and altering need it.
        assert_eq!(refused(&db, "fleet_app", sql).await, "42501", "{sql}");
    }
    db.execute("set role fleet_app; select fleet.make_partitions(interval '100 days'); reset role")
        .await;
    let owners = db
        .count(
            "select count(distinct relowner) from pg_class
              where relnamespace = 'fleet'::regnamespace and relname ~ '^task_events' and relkind in ('r', 'p')",
        )
        .await;
    assert_eq!(owners, 1, "new partitions belong to fleet_maintenance");
}

#[tokio::test]
async fn fleet_readonly_reads_the_views_and_changes_nothing() {
    let db = Db::new().await;
    db.execute("select fleet.enqueue('t', 'the body', labels => '{agent:x}')").await;
    let views = db
        .rows("select relname::text from pg_class where relnamespace = 'fleet'::regnamespace and relkind = 'v'", &[])
        .await;
    let reader = db.connect().await;
    reader.batch_execute("set role fleet_readonly").await.unwrap();
    for view in &views {
        reader
            .batch_execute(&format!("select * from fleet.{}", view.get::<_, &str>(0)))
            .await
            .unwrap();
    }
    for sql in [
        "select body from fleet.task_specs",
        "select state from fleet.forge_issues",
        "select body from fleet.receipts",
        "select data from fleet.task_logs",
        "select token_digest from fleet.agents",
        "select previous_token_digest from fleet.agents",
        "select * from fleet.agents",
        "select request_hash from fleet.idempotency_keys",
        "select fleet.enqueue('x')",
        "select fleet.cancel('x')",
        "select fleet.retry('x')",
        "select fleet.assign('x', 'y')",
        "select fleet.pause_lane('{}')",
        "select fleet.resume_lane('{}')",
        "select fleet.drain_agent('a')",
        "select fleet.resume_agent('a')",
        "select fleet.purge(now())",
        "select fleet.make_partitions(interval '1 day')",
        "select fleet.apply_grants()",
        "select nextval('fleet.event_ids')",
        "create table fleet.x ()",
        "update fleet.lanes set paused_at = now()",
        "select from fleet.lanes for update",
        "insert into fleet.queue_depth (tasks) values (1)",
    ] {
        let code = refused(&db, "fleet_readonly", sql).await;
        assert!(["42501", "55000"].contains(&code.as_str()), "{sql}: {code}");
    }
    // No table at all can be written.
    let rights: BTreeSet<String> = db
        .rows(
            "select distinct privilege_type::text from information_schema.role_table_grants where grantee = 'fleet_readonly'",
            &[],
        )
        .await
        .iter()
        .map(|r| r.get(0))
        .collect();
    assert_eq!(rights, BTreeSet::from(["SELECT".to_owned()]));
}

/// As on a managed PostgreSQL: an account that may create roles and owns the database, and no superuser.
#[tokio::test]
async fn an_account_that_is_no_superuser_can_set_it_up() {
    // The roles are there.
    Db::new().await;
    let db = Db::empty().await;
    let name = format!("af_admin_{}", std::process::id());
    db.execute(&format!("drop role if exists {name}")).await;
    let database: String = db.rows("select current_database()::text", &[]).await[0].get(0);
    // It may give away roles that others made only when it holds them with that right; roles are of the whole cluster.
    db.execute(&format!(
        "create role {name} login createrole password 'x'; alter database {database} owner to {name};
         grant fleet_owner, fleet_app, fleet_readonly, fleet_maintenance to {name} with admin option"
    ))
    .await;
    let store = db.store_as(&name, "x");
    store.migrate().await.unwrap();
    store.make_roles().await.unwrap();
    store.check_schema().await.unwrap();
    assert!(!store.migrate().await.unwrap().definitions);
    store.make_roles().await.unwrap();
    let app = db.store_as("af_app", "af_app");
    app.check_schema().await.unwrap();
    app.make_partitions(std::time::Duration::from_secs(100 * 86_400)).await.unwrap();
    // A later migration of it reaches what belongs to the roles.
    db.execute("delete from fleet.definitions").await;
    assert!(store.migrate().await.unwrap().definitions);
    app.close();
    store.close();
    db.execute(&format!("alter database {database} owner to current_user; reassign owned by {name} to current_user; drop owned by {name}"))
        .await;
}
