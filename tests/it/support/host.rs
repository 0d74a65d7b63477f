//! A host with a real sshd, and the configuration that leads a replica there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    db::Db,
    eventually,
    node::Node,
    program::{Serve, script},
    sshd::Sshd,
};

/// Where tasks that require `agent:code` can run, two at a time; its CLI is a script of the test.
#[derive(Debug)]
pub(crate) struct SshHost {
    pub(crate) home: TempDir,
    pub(crate) sshd: Sshd,
    /// `[[hosts]]` with the host `h1`, and `[cli.demo]`.
    pub(crate) toml: String,
}

impl SshHost {
    /// `cli` is a `sh` script; before it, a line is added to the file `starts` in the home.
    pub(crate) async fn start(cli: &str) -> Self {
        let home = tempfile::Builder::new().prefix("home").tempdir_in("/tmp").unwrap();
        let sshd = Sshd::start(home.path()).await;
        let command = script(
            home.path(),
            "cli.sh",
            &format!("echo \"$AGENT_FLEET_TASK_KEY\" >>~/starts\n{cli}"),
        );
        let toml = format!(
            "{}agents = [{{ agent_type = \"demo\", max_concurrency = 2, capabilities = [\"agent:code\"] }}]\n\
             [cli.demo]\ncommand = {command}\noutput = \"raw\"\n",
            entry(&sshd, "h1", "known_hosts")
        );
        Self { home, sshd, toml }
    }

    /// A replica that reaches it.
    pub(crate) async fn node(&self, db: &Db, replica_id: &str, toml: &str) -> Node {
        let node = Node::start(db, replica_id, &format!("{toml}\n{}", self.toml)).await;
        node.until_host("h1", "online").await;
        node
    }

    /// One as a process of its own.
    pub(crate) async fn serve(&self, db: &Db, replica_id: &str, toml: &str) -> Serve {
        let open = "[auth]\nmode = \"open\"\n[dispatch]\ninterval = \"1s\"\n";
        let mut serve = Serve::start(db.url(), replica_id, &format!("{open}{toml}{}", self.toml));
        serve.ready().await;
        serve
    }

    /// A file in the home.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The folder that a task works in.
    pub(crate) fn folder(&self, task: &Value) -> PathBuf {
        self.file(&format!("work/tasks/{}", task["task_id"].as_str().unwrap()))
    }

    /// The directory of a run.
    pub(crate) fn run_dir(&self, task_id: &Value, run_lease: i64) -> PathBuf {
        let fleet = fs::read_dir(self.file("work/.agent-fleet")).unwrap().next().unwrap().unwrap();
        fleet.path().join(format!("{}.{run_lease}", task_id.as_str().unwrap()))
    }

    /// How often the CLI was started.
    pub(crate) fn starts(&self) -> usize {
        fs::read_to_string(self.file("starts")).unwrap_or_default().lines().count()
    }

    /// Lets a script go on that waits for a file in the home.
    pub(crate) fn touch(&self, name: &str) {
        fs::write(self.file(name), "").unwrap();
    }

    /// Waits for a pid that a script writes into a file of the home.
    pub(crate) async fn pid(&self, name: &str) -> u32 {
        eventually(&format!("a pid is in {name}"), async || {
            let text = fs::read_to_string(self.file(name)).ok()?;
            text.strip_suffix('\n')?.parse().ok()
        })
        .await
    }
}

/// The head of a `[[hosts]]` that leads to this server; `agents` is to follow.
pub(crate) fn entry(sshd: &Sshd, host_id: &str, known_hosts: &str) -> String {
    format!(
        "[[hosts]]\nhost_id = \"{host_id}\"\nhostname = \"127.0.0.1\"\nssh_port = {}\n\
         ssh_key_path = \"{}\"\nknown_hosts_path = \"{}\"\nwork_dir = \"~/work\"\n",
        sshd.port,
        sshd.file("user_key").display(),
        sshd.file(known_hosts).display()
    )
}

/// Waits until a process is no more, or only a zombie.
pub(crate) async fn until_gone(pid: u32) {
    eventually(&format!("process {pid} is gone"), async || {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        let state = stat.ok().and_then(|s| s.rsplit_once(") ")?.1.chars().next());
        state.is_none_or(|state| state == 'Z').then_some(())
    })
    .await;
}

/// True while a process runs.
pub(crate) fn is_alive(pid: u32) -> bool {
    Command::new("kill").args(["-0", &pid.to_string()]).status().unwrap().success()
}

/// The whole output of a task's last run.
pub(crate) async fn output(node: &Node, task: &Value) -> String {
    let path = format!("/api/v1/tasks/{}/logs", task["task_id"].as_str().unwrap());
    let mut text = String::new();
    loop {
        let (_, page) = node.get(&format!("{path}?offset={}", text.len())).await;
        let items = page["items"].as_array().unwrap().clone();
        if items.is_empty() {
            return text;
        }
        for item in items {
            assert_eq!(item["offset"], text.len(), "no gap, nothing twice");
            text.push_str(item["data"].as_str().unwrap());
        }
    }
}
