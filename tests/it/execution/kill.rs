//! Runs end, at their deadline or when told to, and nobody else does.

use std::{fs, process::Command, time::Duration};

use agent_fleet::execution::{ExitReason, Killed, RunState, Started, kill, read, start};

use super::{Host, all, exited, pid_in, sh};
use crate::support::eventually;

fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

async fn until_gone(pid: u32) {
    eventually("a process is gone", async || (!runs(pid)).then_some(())).await;
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
