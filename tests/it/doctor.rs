//! `agent-fleet doctor`: what it finds, and that its exit code says so.

use std::fs;

use serde_json::Value;

use crate::support::{
    db::Db,
    host::{SshHost, entry},
    program::{agent_fleet, run},
    sshd::free_port,
};

const TOKENS: &str = "[auth]\nadmin_token = \"an-admin-token-of-good-length\"\n[forgejo]\nwebhook_secret = \"a-secret-of-good-length\"\n";

/// Runs it with `--json`; the exit code, and its findings as `area name` and state, with what is said and how to mend it.
async fn doctor(url: &str, toml: &str) -> (Option<i32>, Vec<(String, String, String)>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent-fleet.toml");
    fs::write(&path, toml).unwrap();
    let mut command = agent_fleet(&["doctor", "--json", "--config"]);
    command.arg(&path).env("DATABASE_URL", url);
    let said = run(command).await;
    let report: Value =
        serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{}", said.stderr));
    assert_eq!(report["ok"], said.code == Some(0), "{report}");
    let findings = report["findings"].as_array().unwrap().iter().map(|finding| {
        let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        // Whatever is wrong can be mended.
        assert_eq!(finding["mend"].is_null(), finding["state"] == "ok", "{finding}");
        let name = format!("{} {}", text("area"), text("name"));
        (name, text("state"), format!("{} {}", text("says"), text("mend")))
    });
    (said.code, findings.collect())
}

/// What is not `ok`, by name.
fn amiss(findings: &[(String, String, String)]) -> Vec<(&str, &str)> {
    findings.iter().filter(|f| f.1 != "ok").map(|f| (f.0.as_str(), f.1.as_str())).collect()
}

fn said<'a>(findings: &'a [(String, String, String)], name: &str) -> &'a str {
    &findings.iter().find(|f| f.0 == name).unwrap_or_else(|| panic!("{findings:?}")).2
}

#[tokio::test]
async fn a_good_setup_is_all_ok() {
    let host = SshHost::start("true").await;
    let db = Db::new().await;
    let (code, findings) = doctor(db.url(), &format!("{TOKENS}{}", host.toml)).await;
    assert_eq!((code, amiss(&findings)), (Some(0), vec![]), "{findings:?}");
    for name in [
        "configuration file and environment",
        "database version",
        "database writes",
        "database rights",
        "database autovacuum",
        "database notifications",
        "database clock",
        "database schema",
        "host h1",
        "host h1/work_dir",
        "host h1/demo",
        "host h1/runs",
        "forge webhook",
    ] {
        said(&findings, name);
    }
    // For people, and without what is secret.
    let mut command = agent_fleet(&["doctor"]);
    command.env("DATABASE_URL", db.url()).env("AGENT_FLEET_AUTH_MODE", "open");
    let text = run(command).await;
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    assert!(text.stdout.contains("ok    database version: PostgreSQL "), "{}", text.stdout);
    assert!(text.stdout.contains("warn  configuration auth: "), "{}", text.stdout);
    assert!(!text.stdout.contains("af_app:") && !text.stdout.contains("password=af_app"));
}

#[tokio::test]
async fn what_is_wrong_with_the_database_is_named() {
    let db = Db::new().await;
    let wrong = db
        .url()
        .replace("af_app:af_app@", "af_nobody:s3cret-w0rd@")
        .replace("user=af_app", "user=af_nobody");
    let (code, findings) = doctor(&wrong, TOKENS).await;
    assert_eq!((code, amiss(&findings)), (Some(1), vec![("database connection", "fail")]));
    let text = said(&findings, "database connection");
    assert!(text.contains("pg_hba.conf") && !text.contains("s3cret"), "{text}");

    let away = format!("postgres://af_app@127.0.0.1:{}/x", free_port());
    let (code, findings) = doctor(&away, TOKENS).await;
    assert_eq!((code, amiss(&findings)), (Some(1), vec![("database connection", "fail")]));
    assert!(said(&findings, "database connection").contains("check that PostgreSQL runs"));

    let (code, findings) = doctor("", "[server]\nno_such_key = 1\n").await;
    assert_eq!(
        (code, amiss(&findings)),
        (Some(1), vec![("configuration file and environment", "fail")])
    );
    assert!(said(&findings, "configuration file and environment").contains("no_such_key"));
}

#[tokio::test]
async fn a_schema_that_is_missing_or_old_fails() {
    let db = Db::empty().await;
    let (code, findings) = doctor(db.url(), TOKENS).await;
    assert_eq!(code, Some(1));
    assert!(said(&findings, "database schema").contains("agent-fleet migrate"), "{findings:?}");

    let db = Db::new().await;
    db.execute("delete from fleet.schema_history where version = (select max(version) from fleet.schema_history)").await;
    let (code, findings) = doctor(db.url(), TOKENS).await;
    assert_eq!(
        (code, amiss(&findings)),
        (Some(1), vec![("database schema", "fail")]),
        "{findings:?}"
    );
    assert!(said(&findings, "database schema").contains("lacks migration"), "{findings:?}");
}

#[tokio::test]
async fn a_database_that_is_read_only_or_not_vacuumed_fails_and_lacking_rights_too() {
    let db = Db::new().await;
    let name: String = db.rows("select current_database()", &[]).await[0].get(0);
    db.execute(&format!(
        "alter table fleet.tasks set (autovacuum_enabled = off);
         revoke insert on fleet.task_events from fleet_app;
         alter database {name} set default_transaction_read_only = on"
    ))
    .await;
    let (code, findings) = doctor(db.url(), TOKENS).await;
    assert_eq!(
        (code, amiss(&findings)),
        (
            Some(1),
            vec![
                ("database writes", "fail"),
                ("database rights", "fail"),
                ("database autovacuum", "fail")
            ]
        ),
        "{findings:?}"
    );
    assert!(said(&findings, "database writes").contains("read-only"));
    assert!(said(&findings, "database rights").contains("task_events: insert"));
    assert!(said(&findings, "database autovacuum").contains("fleet.tasks"));
}

#[tokio::test]
async fn what_is_wrong_with_hosts_is_named() {
    let host = SshHost::start("true").await;
    let db = Db::new().await;
    let entry = |host_id: &str| entry(&host.sshd, host_id, "known_hosts");
    let agents = "agents = [{ agent_type = \"gone\", max_concurrency = 1, capabilities = [\"agent:code\"] }]\n";
    let away = entry("away")
        .replace(&format!("ssh_port = {}", host.sshd.port), &format!("ssh_port = {}", free_port()));
    let no_dir = entry("no-dir").replace("~/work", "/proc/nowhere");
    let toml = format!(
        "{TOKENS}{away}{agents}{}{agents}{no_dir}{agents}[cli.gone]\ncommand = [\"no-such-program\"]\n",
        entry("no-cli")
    );
    let (code, findings) = doctor(db.url(), &toml).await;
    assert_eq!(
        (code, amiss(&findings)),
        (
            Some(1),
            vec![
                ("host away", "fail"),
                ("host no-cli/gone", "fail"),
                ("host no-dir/work_dir", "fail"),
                ("host no-dir/gone", "fail"),
            ]
        ),
        "{findings:?}"
    );
    assert!(said(&findings, "host away").contains("ssh -p "), "{findings:?}");
    assert!(said(&findings, "host no-cli/gone").contains("no-such-program"));
    assert!(said(&findings, "host no-dir/work_dir").contains("/proc/nowhere"));
}
