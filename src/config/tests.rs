//! What is accepted, what is refused and how the refusal reads.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::*;

const TOKEN: &str = "tok-7f3a91";

fn built_in() -> BTreeMap<String, Cli> {
    let codex = Cli {
        command: ["codex", "exec", "--json", "-"].map(str::to_owned).to_vec(),
        prompt: PromptVia::Stdin,
        output: OutputFormat::CodexJson,
        timeout: None,
        env: BTreeMap::new(),
    };
    BTreeMap::from([("codex-cli".to_owned(), codex)])
}

fn load_with(text: &str, env: &[(&str, &str)], flags: &Overrides) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.toml");
    std::fs::write(&path, text).unwrap();
    let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    Config::load(Some(&path), env, flags, built_in())
}

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load_with(text, env, &Overrides::default())
}

/// The refusal with its causes, as a person reads it; also as `Debug`, since that reaches logs too.
fn refusal(text: &str, env: &[(&str, &str)]) -> String {
    match load(text, env) {
        Ok(_) => panic!("accepted: {text} {env:?}"),
        Err(error) => {
            assert!(!format!("{error:?}").contains(TOKEN), "{error:?}");
            crate::telemetry::error_chain(&error)
        }
    }
}

/// A local host; `extra` adds or repeats keys.
fn host(extra: &str) -> String {
    format!(
        "[[hosts]]\nhost_id = \"h1\"\nhostname = \"localhost\"\nwork_dir = \"/w\"\n\
         agents = [{{ agent_type = \"codex-cli\" }}]\n{extra}\n"
    )
}

#[test]
fn defaults_are_those_of_the_contract() {
    let c = load("", &[]).unwrap();
    assert_eq!(c.server.listen.to_string(), "127.0.0.1:9090");
    assert!(c.server.replica_id.contains('-'));
    assert_eq!((c.server.max_connections, c.server.max_requests), (10_000, 2_000));
    assert_eq!(c.server.max_requests_per_agent, 100);
    let [client_timeout, drain_grace] = [30, 5].map(Duration::from_secs);
    assert_eq!((c.server.client_timeout, c.server.drain_grace), (client_timeout, drain_grace));
    assert!(c.database.url.is_none() && c.database.listen_url.is_none());
    assert_eq!(c.database.max_connections, 16);
    assert_eq!(c.auth.mode, AuthMode::Token);
    assert!(c.auth.admin_token.is_empty());
    let secs = Duration::from_secs;
    assert_eq!((c.dispatch.interval, c.dispatch.undecided_grace), (secs(10), secs(30)));
    assert_eq!((c.lease.heartbeat_interval, c.lease.heartbeat_misses), (secs(60), 3));
    assert_eq!((c.lease.assign_reservation, c.lease.replica_ttl), (secs(600), secs(15)));
    assert_eq!((c.tasks.timeout, c.tasks.max_retries), (secs(3600), 2));
    assert_eq!((c.tasks.retry_backoff, c.tasks.retention), (secs(10), secs(30 * 86400)));
    assert!(c.forgejo.url.is_none() && c.forgejo.repos.is_empty() && c.hosts.is_empty());
    assert_eq!(c.log.level, "info");
    assert_eq!(c.cli.len(), 1);
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    let plain = |mut c: Config| {
        // The one part that is made anew each time.
        c.server.replica_id.clear();
        format!("{c:?}")
    };
    let printed = load(DEFAULT_FILE, &[]).unwrap();
    assert_eq!(plain(printed), plain(load("", &[]).unwrap()));
}

#[test]
fn the_printed_file_shows_every_key() {
    // With the `#` removed, what is commented out is valid too.
    let whole: String = DEFAULT_FILE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    // The token that is shown wants it.
    let whole = whole.replace("repos = []", "repos = [\"org/*\"]");
    let c = load(&whole, &[]).unwrap();
    assert_eq!(c.hosts.len(), 1);
    assert_eq!(c.cli["my-agent"].prompt, PromptVia::File);
    let table: toml::Table = toml::from_str(&whole).unwrap();
    for key in [
        "server.listen",
        "server.replica_id",
        "server.max_connections",
        "server.max_requests",
        "server.max_requests_per_agent",
        "server.client_timeout",
        "server.drain_grace",
        "database.url",
        "database.listen_url",
        "database.max_connections",
        "auth.mode",
        "auth.admin_token",
        "auth.operator_token",
        "auth.viewer_token",
        "auth.enrollment_token",
        "auth.shared_agent_token",
        "dispatch.interval",
        "dispatch.undecided_grace",
        "lease.heartbeat_interval",
        "lease.heartbeat_misses",
        "lease.assign_reservation",
        "lease.replica_ttl",
        "tasks.timeout",
        "tasks.max_retries",
        "tasks.retry_backoff",
        "tasks.retention",
        "forgejo.url",
        "forgejo.token",
        "forgejo.webhook_secret",
        "forgejo.repos",
        "log.format",
        "log.level",
    ] {
        let (section, key) = key.split_once('.').unwrap();
        assert!(table[section].get(key).is_some(), "{section}.{key}");
    }
    let host = table["hosts"][0].as_table().unwrap();
    assert_eq!(host.len(), 9, "{host:?}");
    assert_eq!(table["cli"]["my-agent"].as_table().unwrap().len(), 5);
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\nreplica_id = \"file\"\n[log]\nlevel = \"warn\"\n\
                [tasks]\nmax_retries = 7";
    let env = [
        ("AGENT_FLEET_LISTEN", "127.0.0.1:2"),
        ("AGENT_FLEET_REPLICA_ID", "env"),
        ("RUST_LOG", "agent_fleet=debug"),
        ("AGENT_FLEET_MAX_RETRIES", ""),
    ];
    let c = load(file, &env).unwrap();
    assert_eq!((c.server.listen.port(), c.server.replica_id.as_str()), (2, "env"));
    assert_eq!((c.log.level.as_str(), c.tasks.max_retries), ("agent_fleet=debug", 7));
    let flags = Overrides { listen: Some("[::1]:3".into()), replica_id: Some("flag".into()) };
    let c = load_with(file, &env, &flags).unwrap();
    assert_eq!((c.server.listen.port(), c.server.replica_id.as_str()), (3, "flag"));
    let flags = Overrides { listen: Some("nowhere".into()), replica_id: None };
    let error = load_with("", &[], &flags).unwrap_err().to_string();
    assert!(error.contains("--listen") && error.contains("server.listen"), "{error}");
}

#[test]
fn every_variable_of_the_contract_is_read() {
    let env = [
        ("DATABASE_URL", "postgres://u:p@h/d"),
        ("AGENT_FLEET_LISTEN_URL", "postgres://u:p@l/d"),
        ("AGENT_FLEET_DB_CONNECTIONS", "5"),
        ("AGENT_FLEET_AUTH_MODE", "open"),
        ("AGENT_FLEET_ADMIN_TOKEN", "a1, a2,"),
        ("AGENT_FLEET_OPERATOR_TOKEN", "o"),
        ("AGENT_FLEET_VIEWER_TOKEN", "v"),
        ("AGENT_FLEET_ENROLLMENT_TOKEN", "e"),
        ("AGENT_FLEET_DISPATCH_INTERVAL", "1s"),
        ("AGENT_FLEET_UNDECIDED_GRACE", "0s"),
        ("AGENT_FLEET_HEARTBEAT_INTERVAL", "2s"),
        ("AGENT_FLEET_HEARTBEAT_MISSES", "4"),
        ("AGENT_FLEET_REPLICA_TTL", "3s"),
        ("AGENT_FLEET_TASK_TIMEOUT", "1m"),
        ("AGENT_FLEET_MAX_RETRIES", "0"),
        ("AGENT_FLEET_RETRY_BACKOFF", "5s"),
        ("AGENT_FLEET_FORGEJO_URL", "https://forge.example/"),
        ("AGENT_FLEET_WEBHOOK_SECRET", "w1,w2"),
        ("AGENT_FLEET_FORGEJO_TOKEN", "t"),
        ("AGENT_FLEET_LOG_FORMAT", "json"),
    ];
    let c = load("[forgejo]\nrepos = [\"org/*\", \"a/b\"]", &env).unwrap();
    assert_eq!(c.database.url.as_ref().unwrap().expose(), "postgres://u:p@h/d");
    assert_eq!(c.database.listen_url.as_ref().unwrap().expose(), "postgres://u:p@l/d");
    assert_eq!((c.database.max_connections, c.auth.mode), (5, AuthMode::Open));
    assert_eq!(c.auth.admin_token, [Secret::new("a1"), Secret::new("a2")]);
    let one = [&c.auth.operator_token, &c.auth.viewer_token, &c.auth.enrollment_token];
    assert_eq!(one.map(|t| t[0].expose()), ["o", "v", "e"]);
    let secs = Duration::from_secs;
    assert_eq!((c.dispatch.interval, c.dispatch.undecided_grace), (secs(1), secs(0)));
    assert_eq!((c.lease.agent_ttl(), c.lease.replica_ttl), (secs(8), secs(3)));
    assert_eq!(
        (c.tasks.timeout, c.tasks.max_retries, c.tasks.retry_backoff),
        (secs(60), 0, secs(5))
    );
    assert_eq!(c.forgejo.url.as_deref(), Some("https://forge.example"));
    assert_eq!((c.forgejo.webhook_secret.len(), c.log.format), (2, LogFormat::Json));
    assert!(!format!("{c:?}").contains("u:p"));
}

#[test]
fn a_secret_is_one_text_or_a_list() {
    let c = load(
        "[auth]\nadmin_token = \"a,b\"\noperator_token = [\"x\", \"\", \"y\"]\nviewer_token = \"\"",
        &[],
    )
    .unwrap();
    assert_eq!(c.auth.admin_token, [Secret::new("a,b")]);
    assert_eq!(c.auth.operator_token, [Secret::new("x"), Secret::new("y")]);
    assert!(c.auth.viewer_token.is_empty());
}

#[test]
fn refusals_name_the_key_and_say_how_to_mend_it() {
    let two_agents = "agents = [{ agent_type = \"codex-cli\" }, { agent_type = \"codex-cli\" }]";
    let remote = "[[hosts]]\nhost_id = \"r\"\nhostname = \"far.example\"\nwork_dir = \"/w\"\n\
                  agents = [{ agent_type = \"codex-cli\" }]\n";
    let replace = |from: &str, to: &str| host("").replace(from, to);
    let cases: Vec<(String, &[&str])> = vec![
        (
            "[lease]\nheartbeet = 1".into(),
            &["line 2", "lease.heartbeet", "known", "heartbeat_interval"],
        ),
        ("[leese]".into(), &["line 1", "leese", "lease"]),
        (
            "[lease]\nheartbeat_interval = \"soon\"".into(),
            &["lease.heartbeat_interval", "`soon`", "\"30s\""],
        ),
        ("lease.heartbeat_interval = 30".into(), &["lease.heartbeat_interval", "\"30s\""]),
        ("[lease]\nheartbeat_interval = \"0s\"".into(), &["lease.heartbeat_interval", "zero"]),
        ("[lease]\nheartbeat_misses = 0".into(), &["lease.heartbeat_misses", "from 1"]),
        ("[lease]\nreplica_ttl = \"11years\"".into(), &["lease.replica_ttl", "ten years"]),
        ("[lease]\nassign_reservation = \"0s\"".into(), &["lease.assign_reservation", "zero"]),
        ("[tasks]\ntimeout = \"10ms\"".into(), &["tasks.timeout", "second"]),
        ("[tasks]\nmax_retries = -1".into(), &["tasks.max_retries", "-1", "whole number"]),
        ("[tasks]\nmax_retries = \"two\"".into(), &["tasks.max_retries", "whole number"]),
        ("[tasks]\nretention = \"0s\"".into(), &["tasks.retention", "zero"]),
        (
            "[dispatch]\ninterval = \"0s\"".into(),
            &["dispatch.interval", "AGENT_FLEET_DISPATCH_INTERVAL"],
        ),
        ("[database]\nmax_connections = 0".into(), &["database.max_connections", "from 1"]),
        ("[server]\nlisten = \"localhost\"".into(), &["server.listen", "127.0.0.1:9090"]),
        ("[server]\nreplica_id = \"a b\"".into(), &["server.replica_id", "`a b`"]),
        ("[auth]\nmode = \"none\"".into(), &["auth.mode", "\"open\""]),
        ("[auth]\nadmin_token = \"a b\"".into(), &["auth.admin_token", "space"]),
        ("[forgejo]\nwebhook_secret = \"x\\n\"".into(), &["forgejo.webhook_secret", "line break"]),
        ("[forgejo]\ntoken = \"x\"".into(), &["forgejo.repos", "forgejo.token"]),
        ("[forgejo]\ntoken = \"x\"\nrepos = [\"o/r\"]".into(), &["forgejo.url"]),
        ("[forgejo]\nrepos = [\"org\"]".into(), &["forgejo.repos", "`org`", "owner/*"]),
        ("[forgejo]\nrepos = [\"*/*\"]".into(), &["forgejo.repos"]),
        ("[forgejo]\nurl = \"forge.example\"".into(), &["forgejo.url", "https://"]),
        ("[log]\nformat = \"xml\"".into(), &["log.format", "\"json\""]),
        (
            "[log]\nlevel = \"agent_fleet=loud\"".into(),
            &["log.level", "RUST_LOG", "agent_fleet=debug"],
        ),
        (host("") + &host(""), &["hosts[1].host_id", "`h1`", "earlier"]),
        (replace("\"h1\"", "\"h 1\""), &["hosts[0].host_id", "`h 1`", "A-Z"]),
        (replace("host_id = \"h1\"\n", ""), &["hosts[0].host_id"]),
        (replace("\"localhost\"", "\"-oProxyCommand=x\""), &["hosts[0].hostname", "h1"]),
        (replace("\"localhost\"", "\"a b\""), &["hosts[0].hostname"]),
        (replace("\"codex-cli\"", "\"magic\""), &["magic", "[cli.magic]", "codex-cli"]),
        (
            replace("agents = [{ agent_type = \"codex-cli\" }]", two_agents),
            &["hosts[0].agents[1].agent_type", "codex-cli", "twice"],
        ),
        (replace("agents = [{ agent_type = \"codex-cli\" }]", ""), &["hosts[0].agents", "empty"]),
        (
            replace("\"codex-cli\" }", "\"codex-cli\", max_concurrency = 0 }"),
            &["hosts[0].agents[0].max_concurrency", "from 1"],
        ),
        (
            replace("\"codex-cli\" }", "\"codex-cli\", slots = 1 }"),
            &["hosts[0].agents[0].slots", "known"],
        ),
        (
            replace("\"codex-cli\" }", "\"codex-cli\", capabilities = [\"\"] }"),
            &["capabilities", "empty"],
        ),
        (replace("\"/w\"", "\"w\""), &["hosts[0].work_dir", "~/"]),
        (replace("\"/w\"", "\"~\""), &["hosts[0].work_dir"]),
        (replace("\"/w\"", "\"~other/w\""), &["hosts[0].work_dir"]),
        (replace("\"/w\"", "\"/w\\nx\""), &["hosts[0].work_dir", "line break"]),
        (host("ssh_port = 70000"), &["hosts[0].ssh_port", "65535"]),
        (host("ssh_user = \"-l\""), &["hosts[0].ssh_user"]),
        (host("checkout = \"yes\""), &["hosts[0].checkout", "true or false"]),
        (remote.to_owned(), &["hosts[0].ssh_key_path", "missing"]),
        (
            format!("{remote}ssh_key_path = \"/nowhere/key\""),
            &["hosts[0].ssh_key_path", "/nowhere/key"],
        ),
        (format!("{remote}ssh_key_path = \"/\""), &["hosts[0].ssh_key_path", "not a file"]),
        (
            format!("{remote}ssh_key_path = \"/etc/passwd\""),
            &["hosts[0].known_hosts_path", "missing"],
        ),
        ("[cli.x]\ncommand = []".into(), &["cli.x.command", "empty"]),
        ("[cli.x]\ncommand = [\" \"]".into(), &["cli.x.command", "empty"]),
        ("[cli.x]\noutput = \"raw\"".into(), &["cli.x.command", "empty"]),
        ("[cli.x]\ncommand = \"x -y\"".into(), &["cli.x.command", "a list"]),
        ("[cli.x]\ncommand = [\"x\", \"a\\nb\"]".into(), &["cli.x.command", "line break"]),
        ("[cli.x]\ncommand = [\"x\", \"a\\u0000\"]".into(), &["cli.x.command", "NUL"]),
        (
            "[cli.x]\ncommand = [\"x\"]\nprompt = \"file\"".into(),
            &["cli.x.command", "{prompt_file}"],
        ),
        ("[cli.x]\ncommand = [\"x\", \"{prompt_file}\"]".into(), &["cli.x.prompt", "\"file\""]),
        ("[cli.x]\ncommand = [\"x\"]\nprompt = \"args\"".into(), &["cli.x.prompt", "\"stdin\""]),
        ("[cli.x]\ncommand = [\"x\"]\noutput = \"xml\"".into(), &["cli.x.output", "\"raw\""]),
        ("[cli.x]\ncommand = [\"x\"]\ntimeout = \"0s\"".into(), &["cli.x.timeout", "zero"]),
        ("[cli.x]\ncommand = [\"x\"]\nenv = { \"1A\" = \"x\" }".into(), &["cli.x.env", "`1A`"]),
        (
            format!("[cli.x]\ncommand = [\"x\"]\nenv = {{ A = \"{TOKEN}\\n\" }}"),
            &["cli.x.env.A", "line break"],
        ),
        ("[cli.\"a b\"]\ncommand = [\"x\"]".into(), &["cli", "`a b`"]),
    ];
    for (text, wanted) in &cases {
        let said = refusal(text, &[]);
        for part in *wanted {
            assert!(said.contains(part), "{text}\nsaid: {said}\nnot: {part}");
        }
    }
}

#[test]
fn refused_variables_are_named() {
    for (name, value, key) in [
        ("AGENT_FLEET_LISTEN", "9090", "server.listen"),
        ("AGENT_FLEET_DB_CONNECTIONS", "many", "database.max_connections"),
        ("AGENT_FLEET_DB_CONNECTIONS", "0", "database.max_connections"),
        ("AGENT_FLEET_AUTH_MODE", "Token", "auth.mode"),
        ("AGENT_FLEET_HEARTBEAT_INTERVAL", "60", "lease.heartbeat_interval"),
        ("AGENT_FLEET_HEARTBEAT_INTERVAL", "0s", "lease.heartbeat_interval"),
        ("AGENT_FLEET_REPLICA_TTL", "-1s", "lease.replica_ttl"),
        ("AGENT_FLEET_LOG_FORMAT", "JSON", "log.format"),
        ("AGENT_FLEET_ADMIN_TOKEN", "tok-7f3a91 x", "auth.admin_token"),
        ("AGENT_FLEET_FORGEJO_URL", "https://me:tok-7f3a91@forge.example", "forgejo.url"),
    ] {
        let said = refusal("", &[(name, value)]);
        assert!(said.contains(name) && said.contains(key), "{name}={value}: {said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
}

#[test]
fn no_refusal_shows_a_secret() {
    for key in ["auth.admin_token", "forgejo.webhook_secret", "forgejo.token", "database.url"] {
        let (section, name) = key.split_once('.').unwrap();
        for line in [
            format!("{name} = \"{TOKEN}"),
            format!("{name} = {TOKEN}"),
            format!("{name} = '{TOKEN}\" x"),
            format!("{name} = [\"{TOKEN}\""),
            format!("{name} = \"{TOKEN}\\q\""),
            format!("{name} {TOKEN}"),
            format!("{name} = \"a\"\n{name} = \"{TOKEN}\""),
            format!("{name} = {{ x = \"{TOKEN}\" }}"),
            format!("{name} = [1, \"{TOKEN}\"]"),
            format!("{name} = [[\"{TOKEN}\"]]"),
            format!("{name} = \"{TOKEN}\"\nnonsense = 1"),
        ] {
            let said = refusal(&format!("[{section}]\n{line}\n"), &[]);
            assert!(!said.contains(TOKEN), "{line}: {said}");
            assert!(said.contains("line "), "{said}");
        }
        // A number is the one value that a message could quote in another form.
        let said = refusal(&format!("[{section}]\n{name} = 73912664\n"), &[]);
        assert!(!said.contains("7391") && said.contains(key) && said.contains("a text"), "{said}");
    }
    // A secret under the wrong key.
    let said = refusal(&format!("[database]\nmax_connections = \"{TOKEN}\""), &[]);
    assert!(!said.contains(TOKEN), "{said}");
    let said = refusal(&format!("[auth]\nmode = \"{TOKEN}\""), &[]);
    assert!(!said.contains(TOKEN), "{said}");
}

#[test]
fn a_missing_file_is_an_error_only_when_named() {
    let none = Overrides::default();
    let missing = Path::new("/nowhere/fleet.toml");
    let error = Config::load(Some(missing), |_| None, &none, built_in()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/fleet.toml"), "{error}");
    let env = |name: &str| (name == "AGENT_FLEET_CONFIG").then(|| "/nowhere/env.toml".to_owned());
    let error = Config::load(None, env, &none, built_in()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/env.toml"), "{error}");
}

#[test]
fn serve_wants_a_database_and_a_closed_door() {
    let check = |text: &str| load(text, &[]).unwrap().check_serve().map_err(|e| e.to_string());
    let db = "[database]\nurl = \"postgres://h/d\"\n";
    assert!(check("").unwrap_err().contains("database.url (DATABASE_URL)"));
    assert!(check(db).unwrap_err().contains("auth.admin_token (AGENT_FLEET_ADMIN_TOKEN)"));
    check(&format!("{db}[auth]\nadmin_token = \"a\"")).unwrap();
    let open = format!("{db}[auth]\nmode = \"open\"\n");
    for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        check(&format!("{open}[server]\nlisten = \"{listen}\"")).unwrap();
    }
    for listen in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
        let said = check(&format!("{open}[server]\nlisten = \"{listen}\"")).unwrap_err();
        assert!(said.contains("auth.mode") && said.contains("server.listen"), "{said}");
    }
}

#[test]
fn hosts_and_clis_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["key", "known"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    let text = "[[hosts]]\nhost_id = \"r\"\nhostname = \"far.example\"\nssh_user = \"agent\"\nssh_key_path = \"~/key\"\n\
         known_hosts_path = \"~/known\"\nwork_dir = \"~/work\"\ncheckout = true\n\
         agents = [{ agent_type = \"mine\", max_concurrency = 3, capabilities = [\"agent/code\"] }]\n\
         [cli.mine]\ncommand = [\"mine\", \"{prompt_file}\"]\nprompt = \"file\"\nenv = { KEY = \"v\" }\n\
         [cli.codex-cli]\ntimeout = \"5m\"";
    let c = load(text, &[("HOME", dir.path().to_str().unwrap())]).unwrap();
    let host = &c.hosts[0];
    assert!(!host.is_local() && host.checkout);
    assert_eq!(host.ssh_key_path, Some(dir.path().join("key")));
    assert_eq!((host.ssh_port, host.work_dir.as_str()), (22, "~/work"));
    assert_eq!(host.agents[0].max_concurrency, 3);
    assert_eq!(host.agents[0].capabilities.as_slice(), ["agent:code"]);
    assert_eq!(c.cli["mine"].output, OutputFormat::Raw);
    assert_eq!(c.cli["mine"].env["KEY"].expose(), "v");
    // What was not given stays as built in.
    assert_eq!(c.cli["codex-cli"].command[0], "codex");
    assert_eq!(c.cli["codex-cli"].timeout, Some(Duration::from_secs(300)));
}
