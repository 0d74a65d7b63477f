//! Runs on hosts, over both executors: a local one and one that speaks to a real sshd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use agent_fleet::{
    config::{PromptVia, Secret},
    execution::{
        Beat, ConnectFailure, End, ExecError, Executor, ExitReason, Flow, Followed, Killed,
        LocalExecutor, Output, RunDir, RunError, RunState, Script, SshExecutor, StartError,
        StartSpec, Started, follow, kill, probe, read, start, stderr_tail, tombstone,
    },
    model::{Lease, TaskId},
};
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{
    eventually,
    sshd::{Sshd, free_port},
};

/// A host: a home of its own, and a way to it.
struct Host {
    home: TempDir,
    executor: Box<dyn Executor>,
    /// Held for its drop.
    sshd: Option<Sshd>,
}

impl Host {
    fn local() -> Self {
        let home = home();
        let path = home.path().to_str().unwrap();
        let executor = Box::new(LocalExecutor::new().with_variable("HOME", path));
        Self { home, executor, sshd: None }
    }

    async fn ssh() -> Self {
        let home = home();
        let sshd = Sshd::start(home.path()).await;
        Self { home, executor: Box::new(sshd.executor()), sshd: Some(sshd) }
    }

    /// Local, with bash as `sh`. Elsewhere it is what the machine has: dash on Debian.
    fn local_bash() -> Self {
        let home = home();
        let bin = home.path().join(".sh");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink("/bin/bash", bin.join("sh")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let executor = LocalExecutor::new()
            .with_variable("HOME", home.path().to_str().unwrap())
            .with_variable("PATH", &path);
        Self { home, executor: Box::new(executor), sshd: None }
    }

    async fn each() -> [Self; 3] {
        [Self::local(), Self::local_bash(), Self::ssh().await]
    }

    fn on(&self) -> &dyn Executor {
        &*self.executor
    }

    fn run(&self) -> RunDir {
        RunDir {
            work_dir: "~/work".into(),
            fleet_id: Uuid::from_u128(1),
            task_id: TaskId(Uuid::now_v7()),
            run_lease: Lease(3),
        }
    }

    fn dir(&self, run: &RunDir) -> PathBuf {
        let name = format!("work/.agent-fleet/{}/{}.{}", run.fleet_id, run.task_id, run.run_lease);
        self.home.path().join(name)
    }

    fn folder(&self, run: &RunDir) -> PathBuf {
        self.home.path().join(format!("work/tasks/{}", run.task_id))
    }
}

fn home() -> TempDir {
    tempfile::Builder::new().prefix("home").tempdir_in("/tmp").unwrap()
}

/// A CLI that is a shell script, as a demo agent would be.
fn sh(script: &str) -> StartSpec {
    StartSpec {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        prompt_via: PromptVia::Stdin,
        prompt: b"do it".to_vec(),
        env: Vec::new(),
        timeout: Duration::from_secs(60),
        kill_grace: Duration::from_secs(1),
    }
}

/// Follows to the end and collects the output.
async fn all(on: &dyn Executor, run: &RunDir, offset: u64) -> (Vec<u8>, RunState) {
    let got: Arc<Mutex<Vec<u8>>> = Arc::default();
    let followed: Result<Followed, ()> = follow(on, run, offset, |beat| {
        if let Beat::Output { offset: at, data } = beat {
            let mut got = got.lock().unwrap();
            assert_eq!(at, offset + got.len() as u64);
            got.extend(data);
        }
        async { Ok(Flow::Continue) }
    })
    .await;
    let End::Final(state) = followed.unwrap().end else { panic!("nobody said stop") };
    let got = got.lock().unwrap().clone();
    (got, state)
}

fn exited(code: i32) -> RunState {
    RunState::Exited { code, reason: ExitReason::Exited }
}

/// The pid in a file that a run writes, once it is there.
async fn pid_in(file: &Path) -> u32 {
    eventually("a pid is written", async || {
        fs::read_to_string(file).ok()?.split_whitespace().next()?.parse().ok()
    })
    .await
}

fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

async fn until_gone(pid: u32) {
    eventually("a process is gone", async || (!runs(pid)).then_some(())).await;
}

#[tokio::test]
async fn output_streams_from_any_offset() {
    for host in Host::each().await {
        let run = host.run();
        // The second half waits for a file, so that reading while it runs is certain.
        let script =
            "echo one; until [ -e go ]; do sleep 0.05; done; echo two; echo err >&2; exit 3";
        assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::NotStarted);
        assert_eq!(start(host.on(), &run, &sh(script)).await.unwrap(), Started::Started);
        let first = eventually("the first line is there", async || {
            let chunk = read(host.on(), &run, 0, 1000).await.unwrap();
            (chunk.size > 0).then_some(chunk)
        })
        .await;
        assert_eq!((first.data.as_slice(), first.state), (&b"one\n"[..], RunState::Running));
        fs::write(host.folder(&run).join("go"), "").unwrap();
        assert_eq!(all(host.on(), &run, 2).await, (b"e\ntwo\n".to_vec(), exited(3)));
        let middle = read(host.on(), &run, 1, 4).await.unwrap();
        assert_eq!((middle.data.as_slice(), middle.size), (&b"ne\nt"[..], 8));
        assert_eq!(stderr_tail(host.on(), &run, 3).await.unwrap(), "rr\n");
        let mode = fs::metadata(host.dir(&run).join("prompt")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o77, 0);
        assert!(!host.dir(&run).join("spec").exists());
    }
}

#[tokio::test]
async fn a_prompt_arrives_byte_for_byte_and_runs_nothing() {
    let mut prompt = "'\"`touch bad`$(touch bad)${HOME}\\n\n; touch bad & 😀 {prompt_file}\r\n\0"
        .as_bytes()
        .to_vec();
    prompt.resize(1 << 20, b'\'');
    prompt.extend(b"\n\nlast line without an end");
    for host in Host::each().await {
        for (via, script) in
            [(PromptVia::Stdin, "cat > got"), (PromptVia::File, "cat \"$1\" > got; cat >> got")]
        {
            let run = host.run();
            let mut spec = sh(script);
            spec.command.extend(["sh".into(), "{prompt_file}".into()]);
            spec.prompt = prompt.clone();
            spec.prompt_via = via;
            start(host.on(), &run, &spec).await.unwrap();
            assert_eq!(all(host.on(), &run, 0).await.1, exited(0));
            assert!(fs::read(host.folder(&run).join("got")).unwrap() == prompt, "{via:?}");
            assert!(!host.folder(&run).join("bad").exists());
        }
    }
}

#[tokio::test]
async fn words_and_environment_arrive_as_they_are() {
    let odd = "  $(touch bad) 'q' \"d\" \\n `x` * ~ 😀 ";
    for host in Host::each().await {
        fs::write(host.home.path().join(".profile"), "export A=profile B=profile\n").unwrap();
        let run = host.run();
        let mut spec = sh("printf '%s|' \"$1\" \"$2\" \"$A\" \"$B\" \"$IFS\"; pwd");
        spec.command.extend(["sh".into(), odd.into(), String::new()]);
        spec.env = vec![("A".into(), Secret::new(odd)), ("af".into(), Secret::new(""))];
        start(host.on(), &run, &spec).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        let folder = host.folder(&run);
        let expected = format!("{odd}||{odd}|profile| \t\n|{}\n", folder.display());
        assert_eq!((String::from_utf8(out).unwrap(), state), (expected, exited(0)));
        assert!(!folder.join("bad").exists());
    }
}

#[tokio::test]
async fn the_gate_lets_one_start_through() {
    for host in Host::each().await {
        let run = host.run();
        let spec = sh("echo started >> count");
        let starts = (0..6).map(|_| start(host.on(), &run, &spec));
        let results = futures_util::future::join_all(starts).await;
        let started = results.iter().filter(|r| matches!(r, Ok(Started::Started))).count();
        let refused = results.iter().filter(|r| matches!(r, Ok(Started::GateExists))).count();
        assert_eq!((started, refused), (1, 5), "{results:?}");
        assert_eq!(all(host.on(), &run, 0).await.1, exited(0));
        assert_eq!(start(host.on(), &run, &spec).await.unwrap(), Started::GateExists);
        // A later attempt has a gate of its own, and finds the folder as it was left.
        let next = RunDir { run_lease: Lease(4), ..run.clone() };
        assert_eq!(start(host.on(), &next, &spec).await.unwrap(), Started::Started);
        all(host.on(), &next, 0).await;
        let count = fs::read_to_string(host.folder(&run).join("count")).unwrap();
        assert_eq!(count, "started\nstarted\n");
    }
}

#[tokio::test]
async fn a_run_outlives_its_connection() {
    let host = Host::ssh().await;
    let sshd = host.sshd.as_ref().unwrap();
    let executor = sshd.executor();
    let run = host.run();
    let script = "echo one; until [ -e go ]; do sleep 0.05; done; echo two";
    start(&executor, &run, &sh(script)).await.unwrap();
    let seen: Arc<Mutex<(Vec<u8>, bool)>> = Arc::default();
    let following = follow(&executor, &run, 0, |beat| {
        let mut seen = seen.lock().unwrap();
        if let Beat::Output { data, .. } = beat {
            seen.0.extend(data);
        }
        async { Ok::<_, ()>(Flow::Continue) }
    });
    let breaking = async {
        eventually("output is seen", async || (seen.lock().unwrap().0 == b"one\n").then_some(()))
            .await;
        for socket in executor.control_sockets() {
            end_master(&socket);
        }
        fs::write(host.folder(&run).join("go"), "").unwrap();
    };
    let (followed, ()) = tokio::join!(following, breaking);
    assert_eq!(followed.unwrap(), Followed { offset: 8, end: End::Final(exited(0)) });
    assert_eq!(seen.lock().unwrap().0, b"one\ntwo\n");
    executor.close().await;
    assert!(executor.control_sockets().is_empty());
}

/// Ends the `ssh` behind a control socket: its title names the socket.
fn end_master(socket: &Path) {
    let socket = socket.to_str().unwrap();
    assert!(socket.starts_with("/tmp/af"), "{socket}");
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(title) = fs::read_to_string(entry.path().join("cmdline")) else { continue };
        if title.contains(socket) {
            let pid = entry.file_name();
            Command::new("kill").arg("-KILL").arg(pid).status().unwrap();
        }
    }
}

#[tokio::test]
async fn the_host_ends_a_run_at_its_deadline() {
    for host in Host::each().await {
        let run = host.run();
        // A child that ignores TERM, too.
        let mut spec = sh(
            "sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 1; done' & echo here; wait",
        );
        spec.timeout = Duration::from_millis(900);
        start(host.on(), &run, &spec).await.unwrap();
        let child = pid_in(&host.folder(&run).join("child")).await;
        let (out, state) = all(host.on(), &run, 0).await;
        assert_eq!(out, b"here\n");
        assert!(
            matches!(state, RunState::Exited { code, reason: ExitReason::Timeout } if code >= 128),
            "{state:?}"
        );
        assert!(!runs(child));
    }
}

#[tokio::test]
async fn what_a_cli_leaves_behind_is_ended_and_no_sleep_stays() {
    let host = Host::local();
    let run = host.run();
    start(host.on(), &run, &sh("sleep 1000 & echo $! > child; exit 5")).await.unwrap();
    assert_eq!(all(host.on(), &run, 0).await.1, exited(5));
    assert!(!runs(pid_in(&host.folder(&run).join("child")).await));
    // The watchdog is of the runner's session.
    let runner = pid_in(&host.dir(&run).join("runner")).await;
    eventually("the runner's session is empty", async || {
        let left = Command::new("ps").args(["-s", &runner.to_string(), "-o", "pid="]).output();
        left.unwrap().stdout.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_kill_is_verified() {
    for host in Host::each().await {
        // Not started: the gate is shut, and stays so.
        let run = host.run();
        let grace = Duration::from_secs(1);
        assert_eq!(kill(host.on(), &run, grace).await.unwrap(), Killed::NeverStarted);
        assert_eq!(start(host.on(), &run, &sh(":")).await.unwrap(), Started::GateExists);
        assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Closed);
        assert_eq!(kill(host.on(), &run, grace).await.unwrap(), Killed::NeverStarted);

        for (script, signal) in [
            ("echo $$ > me; exec sleep 1000", 15),
            ("trap '' TERM; echo $$ > me; while :; do sleep 1; done", 9),
        ] {
            let run = host.run();
            start(host.on(), &run, &sh(script)).await.unwrap();
            let me = pid_in(&host.folder(&run).join("me")).await;
            assert_eq!(kill(host.on(), &run, grace).await.unwrap(), Killed::Gone);
            assert!(!runs(me));
            let state = RunState::Exited { code: 128 + signal, reason: ExitReason::Killed };
            assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, state);
            assert_eq!(kill(host.on(), &run, grace).await.unwrap(), Killed::Gone);
        }
    }
}

#[tokio::test]
async fn a_reused_pid_is_never_signalled() {
    let host = Host::local();
    let run = host.run();
    start(host.on(), &run, &sh("exec sleep 1000")).await.unwrap();
    let cli = pid_in(&host.dir(&run).join("pid")).await;
    let runner = pid_in(&host.dir(&run).join("runner")).await;
    signal(runner, "KILL");
    until_gone(runner).await;
    // The runner was killed, the CLI lives on: still at work, and still to be killed.
    assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Running);
    // The same pid with another start time is a stranger.
    let file = host.dir(&run).join("pid");
    let real = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{cli} 1\n")).unwrap();
    assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Vanished);
    assert_eq!(kill(host.on(), &run, Duration::ZERO).await.unwrap(), Killed::Gone);
    assert!(runs(cli));
    fs::write(&file, real).unwrap();
    assert_eq!(kill(host.on(), &run, Duration::from_secs(1)).await.unwrap(), Killed::Gone);
    assert!(!runs(cli));
    assert_eq!(all(host.on(), &run, 0).await.1, RunState::Vanished);
    // Another boot.
    fs::write(host.dir(&run).join("boot_id"), "another").unwrap();
    assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Rebooted);
    assert_eq!(kill(host.on(), &run, Duration::ZERO).await.unwrap(), Killed::Gone);
}

fn signal(pid: u32, name: &str) {
    Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
}

#[tokio::test]
async fn a_missing_cli_is_127() {
    for host in Host::each().await {
        let run = host.run();
        let mut spec = sh("");
        spec.command = vec!["no-such-cli".into()];
        start(host.on(), &run, &spec).await.unwrap();
        assert_eq!(all(host.on(), &run, 0).await.1, exited(127));
        assert!(stderr_tail(host.on(), &run, 1000).await.unwrap().contains("no-such-cli"));
    }
}

/// Cuts what is sent, as a dying connection would.
#[derive(Debug)]
struct Cutting<'a>(&'a dyn Executor, usize);

impl Executor for Cutting<'_> {
    fn exec(&self, mut script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        script.stdin.truncate(self.1);
        self.0.exec(script)
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        self.0.reconnect()
    }
}

#[tokio::test]
async fn half_a_prompt_never_starts_a_cli() {
    for host in Host::each().await {
        for sent in [0, 3, 22] {
            let run = host.run();
            let error = start(&Cutting(host.on(), sent), &run, &sh("touch bad")).await.unwrap_err();
            assert!(matches!(&error, StartError::NotStarted(_)), "{error:?}");
            assert!(error.is_known_not_started());
            assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Closed);
            assert_eq!(start(host.on(), &run, &sh(":")).await.unwrap(), Started::GateExists);
            assert!(!host.folder(&run).exists());
        }
    }
}

#[tokio::test]
async fn profiles_do_no_harm() {
    for host in [Host::local(), Host::local_bash()] {
        profiles_do_no_harm_on(&host).await;
    }
}

async fn profiles_do_no_harm_on(host: &Host) {
    for profile in [
        "echo '@agent-fleet@ exists'; echo noise >&2; export FROM=profile",
        "export FROM=profile; exit 7",
        "set -eu; export FROM=profile; false",
        "export FROM=profile; trap : EXIT; cd /; umask 0; set -- x y z; run=/nowhere; af_run=x",
        "export FROM=profile; cat; read x; sleep 1000 &",
    ] {
        fs::write(host.home.path().join(".profile"), profile).unwrap();
        let run = host.run();
        start(host.on(), &run, &sh("echo $FROM; pwd")).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        let expected = format!("profile\n{}\n", host.folder(&run).display());
        assert_eq!((String::from_utf8(out).unwrap(), state), (expected, exited(0)), "{profile}");
    }
    // These lose their exports, no more.
    for profile in ["exec true", "if then fi ((", "kill -KILL $(exec sh -c 'echo $PPID')"] {
        fs::write(host.home.path().join(".profile"), profile).unwrap();
        let run = host.run();
        start(host.on(), &run, &sh("echo ran")).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        assert_eq!((out.as_slice(), state), (&b"ran\n"[..], exited(0)), "{profile}");
    }
}

#[tokio::test]
async fn a_login_shell_may_print() {
    let host = Host::ssh().await;
    fs::write(host.home.path().join(".bashrc"), "echo welcome; printf 'no line end'\n").unwrap();
    let run = host.run();
    start(host.on(), &run, &sh("echo out")).await.unwrap();
    assert_eq!(all(host.on(), &run, 0).await, (b"out\n".to_vec(), exited(0)));
}

async fn connect_failure(executor: &SshExecutor, host: &Host) -> (ConnectFailure, String) {
    let run = host.run();
    let error = start(executor, &run, &sh(":")).await.unwrap_err();
    assert!(error.is_known_not_started());
    match error {
        StartError::NotStarted(RunError::Exec(exec @ ExecError::Connect { reason, .. })) => {
            (reason, exec.to_string())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn connections_fail_with_plain_reasons() {
    let host = Host::ssh().await;
    let sshd = host.sshd.as_ref().unwrap();
    let free = free_port();
    let mut cases = Vec::new();
    for (name, expected) in [
        ("wrong_hosts", ConnectFailure::HostKeyMismatch),
        ("no_hosts", ConnectFailure::HostKeyUnknown),
        ("missing", ConnectFailure::HostKeyUnknown),
    ] {
        let mut entry = sshd.host();
        entry.known_hosts_path = Some(sshd.file(name));
        cases.push((entry, expected));
    }
    let mut refused = sshd.host();
    refused.ssh_key_path = Some(sshd.file("other_key"));
    cases.push((refused, ConnectFailure::AuthRefused));
    for name in ["missing", "known_hosts"] {
        let mut bad = sshd.host();
        bad.ssh_key_path = Some(sshd.file(name));
        cases.push((bad, ConnectFailure::BadKey));
    }
    let mut away = sshd.host();
    away.ssh_port = free;
    cases.push((away, ConnectFailure::Unreachable));
    for (entry, expected) in cases {
        let (reason, text) = connect_failure(&sshd.executor_for(&entry), &host).await;
        assert_eq!(reason, expected, "{text}");
        assert!(text.contains("127.0.0.1"), "{text}");
    }
    assert!(
        SshExecutor::new(&sshd.host(), Path::new(&format!("/tmp/{}", "x".repeat(80)))).is_err()
    );
    let mut option = sshd.host();
    option.hostname = "-oProxyCommand=touch bad".into();
    assert!(SshExecutor::new(&option, &sshd.file("ctl")).is_err());
}

#[tokio::test]
async fn a_host_that_is_away_is_waited_for() {
    let host = Host::ssh().await;
    let mut entry = host.sshd.as_ref().unwrap().host();
    entry.ssh_port = free_port();
    let away = host.sshd.as_ref().unwrap().executor_for(&entry);
    let beats: Arc<Mutex<Vec<Beat>>> = Arc::default();
    let followed = follow(&away, &host.run(), 7, |beat| {
        let mut beats = beats.lock().unwrap();
        beats.push(beat);
        let enough = beats.len() >= 3;
        async move { Ok::<_, ()>(if enough { Flow::Stop } else { Flow::Continue }) }
    })
    .await;
    assert_eq!(followed.unwrap(), Followed { offset: 7, end: End::Stopped });
    let beats = beats.lock().unwrap();
    assert!(matches!(&beats[0], Beat::Away { reason } if reason.contains("cannot be reached")));
}

#[tokio::test]
async fn a_quiet_run_beats_and_the_caller_may_stop() {
    let host = Host::local();
    let run = host.run();
    start(host.on(), &run, &sh("exec sleep 1000")).await.unwrap();
    let begin = Instant::now();
    let followed = follow(host.on(), &run, 0, |beat| async move {
        assert_eq!(beat, Beat::Quiet);
        Ok::<_, ()>(Flow::Stop)
    })
    .await;
    assert_eq!(followed.unwrap().end, End::Stopped);
    assert!(begin.elapsed() < Duration::from_secs(10));
    let failed = follow(host.on(), &run, 0, |_| async { Err("lease lost") }).await;
    assert_eq!(failed.unwrap_err(), "lease lost");
    // Stopping to follow does not end the run.
    assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Running);
    assert_eq!(kill(host.on(), &run, Duration::from_secs(1)).await.unwrap(), Killed::Gone);
}

#[tokio::test]
async fn a_folder_may_have_an_odd_name() {
    for host in Host::each().await {
        let work_dir = host.home.path().join("a b'c\"d $(touch bad) é");
        let run = RunDir { work_dir: work_dir.to_str().unwrap().into(), ..host.run() };
        let mut spec = sh("pwd; cat \"$1\"");
        spec.command.extend(["sh".into(), "{prompt_file}".into()]);
        spec.prompt_via = PromptVia::File;
        start(host.on(), &run, &spec).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        let pwd = format!("{}/tasks/{}\ndo it", work_dir.display(), run.task_id);
        assert_eq!((String::from_utf8(out).unwrap(), state), (pwd, exited(0)));
        assert_eq!(kill(host.on(), &run, Duration::ZERO).await.unwrap(), Killed::Gone);
        tombstone(host.on(), &run).await.unwrap();
        let relative = RunDir { work_dir: "here".into(), ..host.run() };
        assert!(matches!(
            start(host.on(), &relative, &spec).await,
            Err(StartError::NotStarted(RunError::Refused(_)))
        ));
    }
}

#[tokio::test]
async fn two_tasks_never_share_a_folder() {
    let host = Host::local();
    let (one, two) = (host.run(), host.run());
    for run in [&one, &two] {
        start(host.on(), run, &sh("ls; echo x > mine")).await.unwrap();
        assert_eq!(all(host.on(), run, 0).await, (Vec::new(), exited(0)));
    }
    assert_ne!(host.folder(&one), host.folder(&two));
}

#[tokio::test]
async fn many_scripts_share_few_connections() {
    let host = Host::ssh().await;
    let executor = host.sshd.as_ref().unwrap().executor();
    // Each waits until all twelve are there, so they do run at once.
    let dir = host.home.path().join("here");
    fs::create_dir(&dir).unwrap();
    let script = |i: u32| Script {
        text: "touch \"$1/$2\"; until [ \"$(ls \"$1\" | wc -l)\" -ge 12 ]; do sleep 0.05; done; cat; exit \"$2\"",
        args: vec![dir.to_str().unwrap().into(), i.to_string()],
        stdin: i.to_string().into_bytes(),
        time_limit: Duration::from_secs(30),
    };
    let outputs = futures_util::future::join_all((0..12).map(|i| executor.exec(script(i)))).await;
    for (i, output) in outputs.into_iter().enumerate() {
        let output = output.unwrap();
        assert_eq!((output.code as usize, output.stdout), (i, i.to_string().into_bytes()));
    }
    assert_eq!(executor.control_sockets().len(), 2);
    executor.close().await;
}

#[tokio::test]
async fn exit_codes_that_ssh_uses_itself_and_hangs_are_told() {
    for host in Host::each().await {
        let script = |text, secs| Script {
            text,
            args: Vec::new(),
            stdin: vec![b'x'; 1 << 20],
            time_limit: Duration::from_secs(secs),
        };
        for (text, code) in [("exit 127", 127), ("exit 255", 255), ("kill -TERM $$", 143)] {
            match host.on().exec(script(text, 20)).await {
                Ok(output) => assert_eq!(output.code, code),
                // ssh does not tell a signal from a lost connection.
                Err(error) => assert!(code == 143 && !error.never_ran(), "{error:?}"),
            }
        }
        let error = host.on().exec(script("sleep 5", 1)).await.unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }) && !error.never_ran());
        // The next one works again.
        assert_eq!(host.on().exec(script("echo ok", 20)).await.unwrap().stdout, b"ok\n");
    }
}

#[tokio::test]
async fn a_tombstone_keeps_the_gate_shut() {
    for host in Host::each().await {
        let run = host.run();
        start(host.on(), &run, &sh("until [ -e go ]; do sleep 0.05; done")).await.unwrap();
        assert!(matches!(tombstone(host.on(), &run).await, Err(RunError::Refused(_))));
        fs::write(host.folder(&run).join("go"), "").unwrap();
        all(host.on(), &run, 0).await;
        // An old tombstone is swept, a young one and a run's directory stay.
        let old = RunDir { run_lease: Lease(1), ..run.clone() };
        let young = RunDir { run_lease: Lease(2), ..run.clone() };
        tombstone(host.on(), &old).await.unwrap();
        tombstone(host.on(), &young).await.unwrap();
        let mark = host.dir(&old).join("tombstone");
        Command::new("touch").args(["-d", "9 days ago"]).arg(&mark).status().unwrap();
        for _ in 0..2 {
            tombstone(host.on(), &run).await.unwrap();
        }
        assert!(!host.dir(&old).exists() && host.dir(&young).exists());
        let left: Vec<_> = fs::read_dir(host.dir(&run)).unwrap().flatten().collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(start(host.on(), &run, &sh(":")).await.unwrap(), Started::GateExists);
        assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Closed);
        assert_eq!(kill(host.on(), &run, Duration::ZERO).await.unwrap(), Killed::Gone);
    }
}

#[tokio::test]
async fn a_probe_tells_what_is_missing() {
    for host in Host::each().await {
        let bin = host.home.path().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("my-cli"), "#!/bin/sh\n").unwrap();
        Command::new("chmod").arg("+x").arg(bin.join("my-cli")).status().unwrap();
        let profile = "echo noise; export PATH=\"$HOME/bin:$PATH\"; exit 1\n";
        fs::write(host.home.path().join(".profile"), profile).unwrap();
        let programs =
            [("good", "my-cli"), ("bad", "no such; cli")].map(|(a, p)| (a.into(), p.into()));
        let look = |work_dir| probe(host.on(), work_dir, Uuid::from_u128(1), &programs);
        let report = look("~/work").await.unwrap();
        assert_eq!(report.problem, None);
        assert!(report.system.starts_with("Linux") && report.boot_id.len() == 36);
        assert_eq!(report.programs["good"].as_deref(), Ok(bin.join("my-cli").to_str().unwrap()));
        assert!(report.programs["bad"].as_ref().unwrap_err().contains("no such; cli"));
        fs::write(host.home.path().join("file"), "").unwrap();
        let report = look("~/file").await.unwrap();
        assert!(report.problem.unwrap().contains("work_dir cannot be written"));
    }
}
