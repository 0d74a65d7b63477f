//! Folders that cannot be worked in, and hosts that end what a connection leaves behind.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use agent_fleet::execution::{
    ExecError, Executor, Output, ProbeReport, RunDir, RunError, Script, StartError, probe, start,
};
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{Host, all, exited, sh};

async fn look(on: &dyn Executor, work_dir: &str) -> ProbeReport {
    probe(on, work_dir, Uuid::from_u128(1), &[]).await.unwrap()
}

/// A run there is not started, by our choice or the host's, and counts as none.
async fn refused(host: &Host, work_dir: &str) -> String {
    let run = RunDir { work_dir: work_dir.into(), ..host.run() };
    let error = start(host.on(), &run, &sh("touch ~/bad")).await.unwrap_err();
    assert!(error.is_known_not_started(), "{error:?}");
    assert!(!host.home.path().join("bad").exists());
    match error {
        StartError::NotStarted(RunError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn folders_that_lead_elsewhere_are_refused_and_missing_ones_are_made() {
    for host in Host::each().await {
        let home = host.home.path();
        fs::create_dir_all(home.join("real/tasks")).unwrap();
        fs::create_dir_all(home.join("other")).unwrap();
        symlink(home.join("real"), home.join("link")).unwrap();
        symlink(home.join("real"), home.join("other/tasks")).unwrap();
        for work_dir in ["~/link", "~/link/", "~/other"] {
            let problem = look(host.on(), work_dir).await.problem.unwrap();
            assert!(problem.contains("symbolic link"), "{problem}");
            assert!(refused(&host, work_dir).await.contains("symbolic link"));
        }
        // So is what an earlier attempt left in place of the task's folder.
        let run = host.run();
        fs::create_dir_all(host.folder(&run).parent().unwrap()).unwrap();
        symlink(home.join("real"), host.folder(&run)).unwrap();
        let error = start(host.on(), &run, &sh("touch ~/bad")).await.unwrap_err();
        assert!(error.is_known_not_started() && !home.join("bad").exists());

        let run = RunDir { work_dir: "~/not/yet/there".into(), ..host.run() };
        assert_eq!(look(host.on(), &run.work_dir).await.problem, None);
        start(host.on(), &run, &sh("exit 4")).await.unwrap();
        assert_eq!(all(host.on(), &run, 0).await.1, exited(4));
    }
}

/// A small file system; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// None where this account may not mount.
    fn new(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(at).output();
        mounted.is_ok_and(|said| said.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_folder_that_takes_nothing_more_is_a_problem_and_starts_nothing() {
    for host in Host::each().await {
        let (closed, full) = (host.home.path().join("closed"), host.home.path().join("full"));
        let (Some(_closed), Some(_full)) =
            (Mount::new(&closed, "ro,size=64k"), Mount::new(&full, "size=1m"))
        else {
            eprintln!("skipped: only root can mount");
            return;
        };
        fs::create_dir(full.join("tasks")).unwrap();
        // Fills it to the last byte.
        let filled = fs::write(full.join("filler"), vec![0; 2 << 20]);
        assert!(filled.is_err());
        for work_dir in ["~/closed", "~/full"] {
            let problem = look(host.on(), work_dir).await.problem.unwrap();
            assert!(problem.contains("cannot be used"), "{problem}");
            assert_eq!(problem.contains("Read-only"), work_dir == "~/closed", "{problem}");
            refused(&host, work_dir).await;
        }
        // As soon as there is room, all is well.
        fs::remove_file(full.join("filler")).unwrap();
        assert_eq!(look(host.on(), "~/full").await.problem, None);
    }
}

/// As logind does where `KillUserProcesses` is on: what a connection leaves behind ends with it.
#[derive(Debug)]
struct Reaping<'a> {
    inner: &'a dyn Executor,
    detached: Mutex<Option<String>>,
}

impl Executor for Reaping<'_> {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        Box::pin(async move {
            let output = self.inner.exec(script).await?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if let Some((_, rest)) = text.split_once("@agent-fleet@ detached ") {
                let pid = rest.split_whitespace().next().map(str::to_owned);
                *self.detached.lock().unwrap() = pid;
            }
            Ok(output)
        })
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.inner.reconnect().await;
            let pid = self.detached.lock().unwrap().take().expect("a process was detached");
            assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
        })
    }
}

#[tokio::test]
async fn a_host_that_ends_what_a_connection_leaves_behind_is_found_out() {
    for host in Host::each().await {
        assert_eq!(look(host.on(), "~/work").await.problem, None);
        let reaping = Reaping { inner: host.on(), detached: Mutex::default() };
        let problem = look(&reaping, "~/work").await.problem.unwrap();
        assert!(problem.contains("ended when their connection closes"), "{problem}");
    }
}
