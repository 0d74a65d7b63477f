//! `agent-fleet serve` as a process.

use std::{fs, time::Duration};

use agent_fleet::cli::dev::postgres::Cluster;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually,
    forge::{Issue, SECRET, post, sign},
    host::{SshHost, is_alive, until_gone},
    node::Node,
    program::{Program, Serve, agent_fleet, run, script},
};

const OPEN: &str = "[auth]\nmode = \"open\"\n[dispatch]\ninterval = \"1s\"\n";

#[tokio::test]
async fn it_waits_for_a_database_that_is_away() {
    let dir = tempfile::Builder::new().prefix("af-pg").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let data = dir.path().join("postgres");
    let cluster = Cluster::start(&data).await.unwrap();
    let url = cluster.url("fleet");
    cluster.create_database("fleet").await.unwrap();
    let mut migrate = agent_fleet(&["migrate"]);
    migrate.env("DATABASE_URL", &url);
    let said = run(migrate).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    cluster.stop().await.unwrap();

    let toml = format!("{OPEN}[forgejo]\nwebhook_secret = \"{SECRET}\"\n");
    let mut serve = Serve::start(&url, "a", &toml);
    serve.program.until_said("waiting for the database").await;
    let cluster = Cluster::start(&data).await.unwrap();
    serve.ready().await;
    // It goes away once more: said plainly, outlived, and told by readyz.
    cluster.stop().await.unwrap();
    let http = reqwest::Client::new();
    let readyz = async || http.get(format!("{}/readyz", serve.url)).send().await.unwrap();
    eventually("readyz says that it is away", async || {
        (readyz().await.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    let tasks = http.get(format!("{}/api/v1/tasks", serve.url)).send().await.unwrap();
    assert_eq!(tasks.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(tasks.headers().contains_key("retry-after"));
    // A delivery is not said to be taken.
    let delivery = Issue::new(42).delivery("opened");
    let mut headers = delivery.headers();
    headers.push(("x-forgejo-signature", sign(SECRET, &delivery.body)));
    let (status, reply) = post(&serve.url, &headers, delivery.body.clone()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
    let alive = http.get(format!("{}/healthz", serve.url)).send().await.unwrap();
    assert_eq!(alive.status(), StatusCode::OK);
    let cluster = Cluster::start(&data).await.unwrap();
    eventually("readyz is well again", async || readyz().await.status().is_success().then_some(()))
        .await;
    serve.program.signal("TERM");
    assert!(serve.program.ended().await.success());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_the_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent-fleet.toml");
    let database = "[database]\nurl = \"postgres://nobody@127.0.0.1:1/none\"\n";
    for (toml, args, named) in [
        ("[server]\nlisten_on = \"127.0.0.1:1\"\n", &[][..], "listen_on"),
        ("[servr]\n", &[], "servr"),
        ("[dispatch]\ninterval = \"soon\"\n", &[], "dispatch.interval"),
        ("not toml", &[], "agent-fleet.toml"),
        // Token mode is the default, and nobody could do anything in it.
        (database, &[], "auth.admin_token"),
        ("[auth]\nmode = \"open\"\n", &[], "database.url"),
        (&format!("{database}[auth]\nmode = \"open\"\n"), &["--listen", "0.0.0.0:0"], "auth.mode"),
        (&format!("{database}[auth]\nmode = \"open\"\n"), &["--listen", "nowhere"], "listen"),
    ] {
        fs::write(&path, toml).unwrap();
        let mut command = agent_fleet(&["serve"]);
        command.args(args).arg("--config").arg(&path);
        let said = run(command).await;
        assert_eq!(said.code, Some(2), "{toml}: {}", said.stderr);
        assert!(said.stderr.contains(named), "{named}: {}", said.stderr);
        assert_eq!(said.stdout, "");
    }
    for args in [&["serve", "--no-such-flag"][..], &["no-such-command"], &[]] {
        assert_eq!(run(agent_fleet(args)).await.code, Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn a_database_without_the_schema_is_refused_and_migrate_makes_it() {
    let db = Db::empty().await;
    let mut serve = Serve::start(db.url(), "a", OPEN);
    let status = serve.program.ended().await;
    assert_eq!(status.code(), Some(1));
    assert!(serve.program.stderr().contains("migrate"), "{}", serve.program.stderr());
    let mut command = agent_fleet(&["migrate"]);
    command.env("DATABASE_URL", db.url());
    assert_eq!(run(command).await.code, Some(0));
    let mut serve = Serve::start(db.url(), "a", OPEN);
    serve.ready().await;
}

#[tokio::test]
async fn sigterm_ends_it_soon_whatever_is_under_way() {
    let host = SshHost::start(
        "cat >/dev/null; echo $$ >~/pid; while [ ! -e ~/go ]; do echo tick; sleep 0.05; done",
    )
    .await;
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", &format!("{OPEN}{}", host.toml));
    serve.ready().await;
    let observer = Node::start(&db, "observer", "").await;
    observer.until_host("h1", "online").await;
    // A run that never stops talking, and an agent that waits for work.
    let id = observer.create("talks", &["agent:code"]).await;
    let pid = host.pid("pid").await;
    observer.until(&id, "running").await;
    observer.register("waits", &["agent:none"], 1).await;
    let waits = tokio::spawn({
        let request = reqwest::Client::new()
            .post(format!("{}/api/v1/tasks/dequeue", serve.url))
            .json(&json!({"agent_id": "waits", "wait_secs": 50}));
        async move { request.send().await.map(|reply| reply.status()) }
    });
    let began = std::time::Instant::now();
    serve.program.signal("TERM");
    let status = serve.program.ended().await;
    assert!(status.success(), "{}", serve.program.stderr());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!serve.program.stderr().contains("still ran"), "{}", serve.program.stderr());
    // The waiting call was answered, or never came to be.
    if let Ok(status) = waits.await.unwrap() {
        assert!(
            [StatusCode::NO_CONTENT, StatusCode::SERVICE_UNAVAILABLE].contains(&status),
            "{status}"
        );
    }
    // The run goes on, for others.
    assert!(is_alive(pid));
    let other = host.node(&db, "b", "").await;
    host.touch("go");
    let task = other.until(&id, "completed").await;
    assert_eq!((&task["attempt"], host.starts()), (&json!(1), 1));
    until_gone(pid).await;
    db.check_history().await;
    for node in [observer, other] {
        node.stop().await;
    }
}

#[tokio::test]
async fn neither_secrets_nor_bodies_are_logged() {
    let db = Db::new().await;
    let toml = format!(
        "[auth]\nadmin_token = \"admin-t0ken\"\nenrollment_token = \"enroll-t0ken\"\n\
         [forgejo]\nwebhook_secret = \"{SECRET}\"\n[log]\nlevel = \"trace\"\n"
    );
    let mut serve = Serve::start(db.url(), "a", &toml);
    serve.ready().await;
    let delivery = Issue::new(42).body("the-body-of-the-issue").delivery("opened");
    let good = sign(SECRET, &delivery.body);
    let mut refused = 0;
    for signature in ["", "0badc0de", &sign("wrong-s3cret", &delivery.body), &good] {
        let mut headers = delivery.headers();
        headers.push(("x-forgejo-signature", signature.to_owned()));
        let (status, _) = post(&serve.url, &headers, delivery.body.clone()).await;
        refused += usize::from(status == StatusCode::UNAUTHORIZED);
    }
    assert_eq!(refused, 3);
    let malformed = b"{\"action\": \"the-body-of-the-issue".to_vec();
    let mut headers = delivery.headers();
    headers.push(("x-forgejo-signature", sign(SECRET, &malformed)));
    assert_eq!(post(&serve.url, &headers, malformed).await.0, StatusCode::BAD_REQUEST);
    let http = reqwest::Client::new();
    let register = http
        .post(format!("{}/api/v1/agents/register", serve.url))
        .bearer_auth("enroll-t0ken")
        .json(&json!({"agent_id": "x", "agent_type": "t", "hostname": "h", "capabilities": []}));
    let registered: Value = register.send().await.unwrap().json().await.unwrap();
    let token = registered["registry_token"].as_str().unwrap().to_owned();
    let guess = http.get(format!("{}/api/v1/tasks", serve.url)).bearer_auth("a-gue55ed-token");
    assert_eq!(guess.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    serve.program.signal("TERM");
    assert!(serve.program.ended().await.success());
    let said = serve.program.stderr();
    assert!(said.contains(&delivery.id), "the refused delivery is named: {said}");
    for secret in
        [SECRET, "the-body-of-the-issue", "t0ken", "gue55ed", &good, "0badc0de", token.as_str()]
    {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_configured_secret_of_a_cli_reaches_it_and_nobody_else() {
    let home = tempfile::tempdir_in("/tmp").unwrap();
    let command = script(home.path(), "cli.sh", "cat >/dev/null; printf %s \"$DEMO_KEY\" >\"$1\"");
    let command = command.replace(']', &format!(", \"{}\"]", home.path().join("got").display()));
    let toml = format!(
        "{OPEN}[log]\nlevel = \"debug\"\n[[hosts]]\nhost_id = \"h1\"\nhostname = \"localhost\"\nwork_dir = \"{}\"\n\
         agents = [{{ agent_type = \"demo\", max_concurrency = 1, capabilities = [\"agent:code\"] }}]\n\
         [cli.demo]\ncommand = {command}\noutput = \"raw\"\nenv = {{ DEMO_KEY = \"k3y-of-the-cli\" }}\n",
        home.path().join("work").display()
    );
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", &toml);
    serve.ready().await;
    let observer = Node::start(&db, "observer", "").await;
    let id = observer.create("x", &["agent:code"]).await;
    let task = observer.until(&id, "completed").await;
    assert_eq!(fs::read_to_string(home.path().join("got")).unwrap(), "k3y-of-the-cli");
    assert!(!task.to_string().contains("k3y-of"));
    let runs = db.count("select count(*) from fleet.runs r where r::text like '%k3y-of%'").await;
    assert_eq!(runs, 0);
    assert!(!serve.program.stderr().contains("k3y-of"), "{}", serve.program.stderr());
    observer.stop().await;
}

#[tokio::test]
async fn two_processes_do_not_share_a_port() {
    let db = Db::new().await;
    let mut serve = Serve::start(db.url(), "a", OPEN);
    serve.ready().await;
    let listen = serve.url.strip_prefix("http://").unwrap();
    let mut command = agent_fleet(&["serve", "--listen", listen]);
    command.env("DATABASE_URL", db.url()).env("AGENT_FLEET_AUTH_MODE", "open");
    let mut second = Program::start(command);
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(second.stderr().contains(listen), "{}", second.stderr());
    // It joined nothing.
    let boots = "select count(*) from fleet.sessions where kind = 'replica'";
    assert_eq!(db.count(boots).await, 1);
}
