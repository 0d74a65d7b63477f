//! The client commands as processes, against `serve` as a process, in token mode.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{
    db::Db,
    host::SshHost,
    host::until_gone,
    program::{Said, Serve, run},
    sshd::free_port,
};

const TOKENS: &str = "[auth]\nadmin_token = \"admin-token\"\noperator_token = \"operator-token\"\n\
                      viewer_token = \"viewer-token\"\n[dispatch]\ninterval = \"1s\"\n";

/// Runs a command with a token.
async fn with(serve: &Serve, token: &str, args: &[&str]) -> Said {
    let mut command = serve.client(args);
    command.env("AGENT_FLEET_TOKEN", token);
    run(command).await
}

/// Runs a command as operator; it must succeed.
async fn done(serve: &Serve, args: &[&str]) -> String {
    let said = with(serve, "operator-token", args).await;
    assert_eq!(said.code, Some(0), "{args:?}: {}{}", said.stdout, said.stderr);
    said.stdout
}

/// The same with `--json`.
async fn json_of(serve: &Serve, args: &[&str]) -> Value {
    let args = [args, &["--json"]].concat();
    serde_json::from_str(&done(serve, &args).await).unwrap()
}

#[tokio::test]
async fn a_task_is_submitted_looked_at_and_steered() {
    let host = SshHost::start(
        "cat >/dev/null; [ -e ~/hang ] && { echo $$ >~/pid; exec sleep 1000; }; echo all is well",
    )
    .await;
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", &format!("{TOKENS}{}", host.toml));
    serve.ready().await;

    // To the end, with its output.
    let submit = ["task", "submit", "--title", "Mend it", "--label", "agent:code", "--key", "k 1"];
    let said = done(&serve, &[&submit[..], &["--body", "$(x)", "--wait"]].concat()).await;
    assert!(said.contains("k 1") && said.contains("completed"), "{said}");
    assert_eq!(done(&serve, &["task", "logs", "k 1"]).await, "all is well\n");
    assert_eq!(done(&serve, &["task", "logs", "k 1", "--follow"]).await, "all is well\n");
    let task = json_of(&serve, &["task", "show", "k 1"]).await;
    assert_eq!((&task["body"], &task["status"]), (&json!("$(x)"), &json!("completed")));
    let shown = done(&serve, &["task", "show", "k 1"]).await;
    for word in ["Mend it", "completed", "h1/demo", "$(x)", "claimed", "all is well"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    // The same again is the same task; another content under its key is refused.
    let again = json_of(&serve, &[&submit[..], &["--body", "$(x)"]].concat()).await;
    assert_eq!(again["task_id"], task["task_id"]);
    let other = [&submit[..], &["--body", "other"]].concat();
    assert_eq!(with(&serve, "operator-token", &other).await.code, Some(1));

    // Nobody can do this one; it is assigned, runs, is called off, and is tried again.
    host.touch("hang");
    let submit = ["task", "submit", "--title", "Other", "--label", "agent:other", "--key", "k2"];
    let args = [&submit[..], &["--mode", "http_pull"]].concat();
    assert_eq!(json_of(&serve, &args).await["status"], "created");
    let refused = with(&serve, "operator-token", &["task", "assign", "k2", "h1"]).await;
    assert_eq!(refused.code, Some(1), "it lacks the capability");
    assert!(refused.stderr.contains("agent:other"), "{}", refused.stderr);
    done(&serve, &["task", "assign", "k2", "h1", "--force"]).await;
    let pid = host.pid("pid").await;
    let cancelled = json_of(&serve, &["task", "cancel", "k2", "--reason", "enough"]).await;
    assert_eq!(cancelled["status"], "cancelled");
    until_gone(pid).await;
    assert!(done(&serve, &["task", "show", "k2"]).await.contains("enough"));
    let retried = done(&serve, &["task", "retry", "k2"]).await;
    assert!(retried.contains("k2 is created again"), "{retried}");
    let twice = with(&serve, "operator-token", &["task", "retry", "k2"]).await;
    assert_eq!(twice.code, Some(1));
    assert!(twice.stderr.starts_with("agent-fleet: ") && twice.stdout.is_empty());

    // Lists.
    let list = json_of(&serve, &["task", "list", "--status", "created"]).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let list = done(&serve, &["task", "list"]).await;
    assert!(list.lines().count() == 3 && list.contains("k 1") && list.contains("k2"), "{list}");
    let page = done(&serve, &["task", "list", "--limit", "1"]).await;
    assert!(page.contains("There are more"), "{page}");
    let hosts = json_of(&serve, &["hosts", "list"]).await;
    assert_eq!(hosts["items"][0]["status"], "online");
    assert!(done(&serve, &["hosts", "list"]).await.contains("h1"));
    assert_eq!(json_of(&serve, &["agents", "list"]).await["items"], json!([]));
    db.check_history().await;
}

#[tokio::test]
async fn agents_and_hosts_are_checked_drained_and_resumed() {
    let host = SshHost::start("true").await;
    let db = Db::new().await;
    // The second host's address answers to nobody.
    let away = host.toml.replacen("host_id = \"h1\"", "host_id = \"h2\"", 1);
    let (away, _) = away.split_once("[cli.").unwrap();
    let away: String =
        away.lines()
            .map(|l| {
                if l.starts_with("ssh_port") {
                    "ssh_port = 1\n".to_owned()
                } else {
                    format!("{l}\n")
                }
            })
            .collect();
    let mut serve = Serve::start(db.url(), "a", &format!("{TOKENS}{}{away}", host.toml));
    serve.ready().await;
    db.execute(
        "with s as (insert into fleet.sessions (kind, subject, ttl) values ('agent', 'ag', interval '1 hour') returning session_id)
         insert into fleet.agents (agent_id, agent_type, hostname, capabilities, max_concurrency, session_id, token_digest)
         select 'ag', 't', 'h', '{}', 1, session_id, '\\x00' from s",
    )
    .await;
    let admin = async |args: &[&str]| with(&serve, "admin-token", args).await;
    let said = admin(&["hosts", "check", "h1"]).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("h1") && said.stdout.contains("online"), "{}", said.stdout);
    for (noun, id) in [("agents", "ag"), ("hosts", "h1")] {
        let said = admin(&[noun, "drain", id]).await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(said.stdout.contains(id) && said.stdout.contains("draining"), "{}", said.stdout);
        let said = admin(&[noun, "resume", id, "--json"]).await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let shown: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(shown["status"], "online");
        let said = admin(&[noun, "drain", "no-such-name"]).await;
        assert_eq!(said.code, Some(1));
        assert!(said.stderr.contains("there is no such"), "{}", said.stderr);
        assert_eq!(admin(&[noun, "drain"]).await.code, Some(2));
        let said = with(&serve, "operator-token", &[noun, "drain", id]).await;
        assert_eq!(said.code, Some(1));
        assert!(said.stderr.contains("admin token"), "{}", said.stderr);
    }
    // All of them, and one is not reached.
    let said = admin(&["hosts", "check", "--json"]).await;
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(said.stderr.contains("h2") && !said.stderr.contains("h1"), "{}", said.stderr);
    let shown: Value = serde_json::from_str(&said.stdout).unwrap();
    let found = &shown["items"][1]["replicas"][0];
    assert_eq!((&found["replica_id"], &found["online"]), (&json!("a"), &json!(false)), "{shown}");
    assert!(found["reason"].is_string() && found["checked_at"].is_string());
}

#[tokio::test]
async fn a_task_that_fails_makes_waiting_for_it_fail() {
    let host = SshHost::start("cat >/dev/null; echo sorry >&2; exit 3").await;
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", &format!("{TOKENS}{}", host.toml));
    serve.ready().await;
    let args = ["task", "submit", "--title", "x", "--label", "agent:code", "--max-retries", "0"];
    let said = with(&serve, "operator-token", &[&args[..], &["--wait"]].concat()).await;
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    assert!(said.stderr.contains("failed") && said.stderr.contains("sorry"), "{}", said.stderr);
}

#[tokio::test]
async fn exit_codes_tell_failure_from_bad_usage() {
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", TOKENS);
    serve.ready().await;
    let submit = ["task", "submit", "--title", "x", "--label", "agent:code"];
    for (token, args, code, named) in [
        ("operator-token", &["task", "show", "no-such-task"][..], 1, "no such task"),
        ("viewer-token", &["task", "list"], 0, ""),
        ("viewer-token", &submit, 1, "AGENT_FLEET_TOKEN"),
        ("guessed", &["task", "list"], 1, "AGENT_FLEET_TOKEN"),
        ("", &["hosts", "list"], 1, "AGENT_FLEET_TOKEN"),
        ("operator-token", &["task", "submit"], 2, "--title"),
        ("operator-token", &["task", "list", "--status", "no-such-status"], 2, "no-such-status"),
        ("operator-token", &["task", "list", "--limit", "0"], 2, "limit"),
        (
            "operator-token",
            &["task", "submit", "--title", "x", "--body-file", "/no/such/file"],
            2,
            "/no/such/file",
        ),
        ("not\na token", &["task", "list"], 2, "AGENT_FLEET_TOKEN"),
    ] {
        let said = with(&serve, token, args).await;
        assert_eq!(said.code, Some(code), "{args:?}: {}", said.stderr);
        assert!(said.stderr.contains(named), "{args:?}: {}", said.stderr);
        assert!(token.is_empty() || !said.stderr.contains(token), "{}", said.stderr);
    }
    let elsewhere = |url: &str| -> Command {
        let mut command = serve.client(&["task", "list"]);
        command.env("AGENT_FLEET_URL", url);
        command
    };
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let said = run(elsewhere(&nobody)).await;
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains(&nobody), "{}", said.stderr);
    assert_eq!(run(elsewhere("ftp://x")).await.code, Some(2));
}
