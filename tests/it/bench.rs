//! `agent-fleet bench` as a process: every scenario runs and its counts agree, nothing is measured.

use serde_json::Value;

use crate::support::{
    db::Db,
    program::{Program, Serve, agent_fleet, run},
};

const TOKENS: &str = "[auth]\nadmin_token = \"admin-t0ken\"\n";

#[tokio::test]
async fn every_scenario_runs_and_reconciles() {
    let said = run(agent_fleet(&["bench", "all", "--quick", "--json"])).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(report["conditions"]["quick"], true);
    let figures = report["figures"].as_array().unwrap();
    for scenario in [
        "cycle",
        "batch",
        "wake",
        "enqueue",
        "webhook",
        "backlog",
        "idle",
        "soak",
        "held-snapshot",
        "stuck",
        "views",
    ] {
        let own: Vec<&Value> = figures.iter().filter(|f| f["scenario"] == scenario).collect();
        assert!(!own.is_empty(), "{scenario} has no figures");
        for figure in own {
            assert!(figure["value"].as_f64().is_some_and(|value| value > 0.0), "{figure}");
        }
    }
}

#[tokio::test]
async fn another_coordinator_is_loaded_only_when_asked_and_left_clean() {
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", TOKENS);
    serve.ready().await;
    let bench = |more: &[&str], token: &str| {
        let mut command =
            agent_fleet(&["bench", "cycle", "--quick", "--json", "--url", &serve.url]);
        command.args(more).env("AGENT_FLEET_TOKEN", token);
        command
    };
    let made = "select count(*) from fleet.tasks";
    for (more, token, code, named) in [
        (&[][..], "admin-t0ken", 2, "--yes"),
        (&["--yes"], "another", 1, "AGENT_FLEET_TOKEN"),
        (&["--yes", "--url", "http://127.0.0.1:1"], "admin-t0ken", 1, "http://127.0.0.1:1"),
        (&["--yes", "--url", "ftp://fleet"], "admin-t0ken", 2, "http"),
        // Before anything is loaded.
        (&["held-snapshot", "--yes"], "admin-t0ken", 2, "held-snapshot"),
    ] {
        let said = run(bench(more, token)).await;
        assert_eq!(said.code, Some(code), "{more:?}: {}", said.stderr);
        assert!(said.stderr.contains(named), "{named}: {}", said.stderr);
        assert_eq!((said.stdout.as_str(), db.count(made).await), ("", 0));
    }
    let said = run(bench(&["--yes"], "admin-t0ken")).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(report["figures"].as_array().unwrap().len(), 2, "{report}");
    let open = "select count(*) from fleet.tasks where status <> 'completed'";
    let here = "select count(*) from fleet.sessions where kind = 'agent' and ended_at is null";
    assert_eq!((db.count(open).await, db.count(here).await), (0, 0));
}

#[tokio::test]
async fn an_interrupt_clears_up() {
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", TOKENS);
    serve.ready().await;
    let mut command = agent_fleet(&["bench", "cycle", "--yes", "--url", &serve.url]);
    command.env("AGENT_FLEET_TOKEN", "admin-t0ken");
    let mut bench = Program::start(command);
    crate::support::eventually("agents work", async || {
        assert!(!bench.has_ended(), "{}", bench.stderr());
        let held = db.count("select count(*) from fleet.tasks where holder is not null").await;
        (held > 0).then_some(())
    })
    .await;
    bench.signal("INT");
    assert_eq!(bench.ended().await.code(), Some(1), "{}", bench.stderr());
    assert!(bench.stderr().contains("SIGINT"), "{}", bench.stderr());
    let open = "select count(*) from fleet.tasks where status not in ('completed', 'cancelled')";
    let here = "select count(*) from fleet.sessions where kind = 'agent' and ended_at is null";
    assert_eq!((db.count(open).await, db.count(here).await), (0, 0));
}
