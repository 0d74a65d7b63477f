//! Hosts that are slow, away, strange or busy.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use agent_fleet::execution::{
    Beat, ConnectFailure, End, ExecError, Executor, Flow, Followed, Killed, RunError, RunState,
    Script, SshExecutor, StartError, follow, kill, probe, read, start,
};
use uuid::Uuid;

use super::{Host, exited, sh};
use crate::support::{eventually, sshd::free_port};

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
        assert!(report.problem.unwrap().contains("work_dir cannot be used"));
    }
}

#[tokio::test]
async fn a_script_that_meets_a_probe_s_new_connection_runs_on_that() {
    let host = Host::ssh().await;
    let executor = host.sshd.as_ref().unwrap().executor();
    let echo = || Script {
        text: "echo here",
        args: Vec::new(),
        stdin: Vec::new(),
        time_limit: Duration::from_secs(30),
    };
    let asking = futures_util::future::join_all((0..6).map(|_| async {
        for _ in 0..15 {
            assert_eq!(executor.exec(echo()).await.unwrap().stdout, b"here\n");
        }
    }));
    let reconnecting = async {
        loop {
            executor.reconnect().await;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = asking => {}
        () = reconnecting => {}
    }
    executor.close().await;
}
