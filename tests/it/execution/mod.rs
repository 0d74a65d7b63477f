//! Runs on hosts, over both executors: a local one and one that speaks to a real sshd.

mod connections;
mod folders;
mod gate;
mod kill;
mod runs;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_fleet::{
    config::PromptVia,
    execution::{
        Beat, End, Executor, ExitReason, Flow, Followed, LocalExecutor, RunDir, RunState,
        StartSpec, follow,
    },
    model::{Lease, TaskId},
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{eventually, sshd::Sshd};

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
        checkout: false,
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
