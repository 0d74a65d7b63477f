//! A run starts once, whole, or not at all.

use std::{fs, process::Command, time::Duration};

use agent_fleet::{
    execution::{
        ExecError, Executor, Killed, Output, RunDir, RunError, RunState, Script, StartError,
        Started, kill, probe, read, start, tombstone,
    },
    model::Lease,
};
use futures_util::future::BoxFuture;

use super::{Host, all, exited, sh};
use crate::support::eventually;

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

/// Marks a run as ended when its gate is passed and its CLI not yet begun, as a kill that comes just then.
#[derive(Debug)]
struct Closing<'a>(&'a dyn Executor);

impl Executor for Closing<'_> {
    fn exec(&self, mut script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        let text = script.text.replace("\ndetach sh ", "\nmkdir \"$run/closed\"\ndetach sh ");
        assert_ne!(text, script.text, "it is a start");
        script.text = Box::leak(text.into_boxed_str());
        self.0.exec(script)
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        self.0.reconnect()
    }
}

#[tokio::test]
async fn a_kill_between_the_gate_and_the_cli_prevents_the_cli() {
    for host in Host::each().await {
        let run = host.run();
        let started = start(&Closing(host.on()), &run, &sh("touch ran")).await.unwrap();
        assert_eq!(started, Started::Started);
        eventually("its runner has ended", async || {
            host.dir(&run).join("exit").exists().then_some(())
        })
        .await;
        assert!(!host.folder(&run).join("ran").exists());
        let state = read(host.on(), &run, 0, 9).await.unwrap().state;
        assert!(
            matches!(state, RunState::Exited { code: 125, .. } | RunState::Closed),
            "{state:?}"
        );
        let killed = kill(host.on(), &run, Duration::ZERO).await.unwrap();
        assert!(matches!(killed, Killed::Gone | Killed::NeverStarted), "{killed:?}");
    }
}

#[tokio::test]
async fn a_tombstone_keeps_the_gate_shut() {
    for host in Host::each().await {
        let run = host.run();
        start(host.on(), &run, &sh("until [ -e go ]; do sleep 0.05; done")).await.unwrap();
        assert!(matches!(tombstone(host.on(), &run).await, Err(RunError::Refused(_))));
        let found = probe(host.on(), &run.work_dir, run.fleet_id, &[]).await.unwrap();
        assert_eq!(found.runs, [(run.task_id, run.run_lease)]);
        // The hour is over.
        fs::remove_file(host.dir(&run).with_file_name("swept")).unwrap();
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
            let found = probe(host.on(), &run.work_dir, run.fleet_id, &[]).await.unwrap();
            assert_eq!(found.runs, []);
        }
        assert!(!host.dir(&old).exists() && host.dir(&young).exists());
        let left: Vec<_> = fs::read_dir(host.dir(&run)).unwrap().flatten().collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(start(host.on(), &run, &sh(":")).await.unwrap(), Started::GateExists);
        assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::Closed);
        assert_eq!(kill(host.on(), &run, Duration::ZERO).await.unwrap(), Killed::Gone);
    }
}
