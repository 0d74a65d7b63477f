//! `agent-fleet dev` as a process.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use tempfile::TempDir;

use crate::support::{
    eventually,
    host::{is_alive, until_gone},
    program::{Program, agent_fleet, run},
    sshd::free_port,
};

/// The folder of a demo. A server that is left in it is ended.
struct DevDir(TempDir);

impl DevDir {
    fn postmaster(&self) -> Option<String> {
        let text = fs::read_to_string(self.0.path().join("postgres/data/postmaster.pid")).ok()?;
        Some(text.lines().next()?.to_owned())
    }
}

impl Drop for DevDir {
    fn drop(&mut self) {
        if let Some(pid) = self.postmaster() {
            let _ = Command::new("kill").args(["-QUIT", &pid]).status();
        }
    }
}

#[tokio::test]
async fn the_demo_completes_both_tasks_and_can_be_started_again() {
    let dir = tempfile::Builder::new().prefix("af-dev").tempdir_in("/tmp").unwrap();
    // The server's account has to enter it.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = DevDir(dir);
    let listen = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{listen}");
    for (start, tasks) in [(1, 2), (2, 4)] {
        let mut command = agent_fleet(&["dev"]);
        command.env("AGENT_FLEET_DEV_DIR", dir.0.path()).env("AGENT_FLEET_LISTEN", &listen);
        let mut demo = Program::start(command);
        eventually(&format!("start {start} says that both are completed"), async || {
            let said = demo.stdout();
            assert!(!demo.has_ended(), "{said}{}", demo.stderr());
            said.contains("Both are completed.").then_some(())
        })
        .await;
        let mut list = agent_fleet(&["task", "list", "--status", "completed", "--json"]);
        list.env("AGENT_FLEET_URL", &url);
        let list: serde_json::Value = serde_json::from_str(&run(list).await.stdout).unwrap();
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), tasks);
        for mode in ["ssh_cli", "http_pull"] {
            let of_mode = items.iter().filter(|task| task["execution_mode"] == mode).count();
            assert_eq!(of_mode, tasks / 2, "{mode}");
        }
        let postmaster = dir.postmaster().unwrap();
        assert!(is_alive(postmaster.parse().unwrap()));
        demo.signal("INT");
        assert!(demo.ended().await.success(), "{}", demo.stderr());
        until_gone(postmaster.parse().unwrap()).await;
        assert_eq!(dir.postmaster(), None);
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_before_anything_is_started() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let mut command = agent_fleet(&["dev"]);
    command.env("AGENT_FLEET_DEV_DIR", dir.path()).env("AGENT_FLEET_LISTEN", &listen);
    let said = run(command).await;
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains(&listen), "{}", said.stderr);
    assert!(!dir.path().join("postgres").exists());
}
