//! A real sshd on a loopback port, with keys made for the run, for the account that runs the tests.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use agent_fleet::{config, execution::SshExecutor};
use tempfile::TempDir;

use super::eventually;

/// Killed when dropped.
#[derive(Debug)]
pub(crate) struct Sshd {
    child: Child,
    pub(crate) port: u16,
    dir: TempDir,
}

impl Sshd {
    /// Starts it with `home` as the home of every login, and waits until it listens.
    pub(crate) async fn start(home: &Path) -> Self {
        // Short: control sockets live below it.
        let dir = tempfile::Builder::new().prefix("af").tempdir_in("/tmp").unwrap();
        for name in ["host_key", "user_key", "other_key"] {
            key(&dir.path().join(name));
        }
        let path = |name: &str| dir.path().join(name);
        fs::copy(path("user_key.pub"), path("authorized_keys")).unwrap();
        fs::create_dir(path("ctl")).unwrap();
        // A port that was free a moment ago may be taken when sshd binds it.
        for _ in 0..10 {
            let port = free_port();
            let config = format!(
                "ListenAddress 127.0.0.1\nHostKey {0}/host_key\nAuthorizedKeysFile {0}/authorized_keys\n\
                 PidFile none\nStrictModes no\nPermitRootLogin yes\nUsePAM no\nPasswordAuthentication no\n\
                 KbdInteractiveAuthentication no\nMaxStartups 100\nSetEnv HOME={1}\n",
                dir.path().display(),
                home.display()
            );
            fs::write(path("conf"), config).unwrap();
            let _ = fs::create_dir_all("/run/sshd");
            let mut child = spawn(dir.path(), port);
            if listens(&mut child, dir.path()).await {
                write_known_hosts(&path("known_hosts"), port, &path("host_key.pub"));
                write_known_hosts(&path("wrong_hosts"), port, &path("other_key.pub"));
                fs::write(path("no_hosts"), "").unwrap();
                return Self { child, port, dir };
            }
        }
        panic!("sshd does not start: {}", fs::read_to_string(path("log")).unwrap());
    }

    /// Ends the server and every connection to it; what they started on the host lives on.
    pub(crate) fn stop(&mut self) {
        let listener = self.child.id();
        let children = fs::read_to_string(format!("/proc/{listener}/task/{listener}/children"));
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Each connection has a process of its own, a child of the listener.
        for pid in children.unwrap_or_default().split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", pid]).status();
        }
    }

    /// Starts it again after [`Self::stop`], on the same port with the same keys.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.dir.path(), self.port);
        let listens = listens(&mut self.child, self.dir.path()).await;
        assert!(listens, "{}", fs::read_to_string(self.file("log")).unwrap());
    }

    /// A file made for this server: `user_key`, `other_key`, `known_hosts`, `wrong_hosts`, `no_hosts`, `ctl`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A host entry that leads here.
    pub(crate) fn host(&self) -> config::Host {
        config::Host {
            host_id: "h".into(),
            hostname: "127.0.0.1".into(),
            ssh_user: None,
            ssh_port: self.port,
            ssh_key_path: Some(self.file("user_key")),
            known_hosts_path: Some(self.file("known_hosts")),
            work_dir: "~/work".into(),
            checkout: false,
            agents: Vec::new(),
        }
    }

    /// An executor for [`Self::host`].
    pub(crate) fn executor(&self) -> SshExecutor {
        self.executor_for(&self.host())
    }

    /// An executor for a changed entry.
    pub(crate) fn executor_for(&self, host: &config::Host) -> SshExecutor {
        SshExecutor::new(host, &self.file("ctl")).unwrap()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, port: u16) -> Child {
    Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f"])
        .arg(dir.join("conf"))
        .args(["-p", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join("log")).unwrap())
        .spawn()
        .expect("/usr/sbin/sshd is needed for the tests")
}

/// Waits until it listens; false when it ends instead.
async fn listens(child: &mut Child, dir: &Path) -> bool {
    eventually("sshd listens or ends", async || {
        if child.try_wait().unwrap().is_some() {
            return Some(false);
        }
        let said = fs::read_to_string(dir.join("log")).unwrap();
        said.contains("Server listening on").then_some(true)
    })
    .await
}

fn key(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status()
        .expect("ssh-keygen is needed for the tests");
    assert!(made.success());
}

fn write_known_hosts(path: &Path, port: u16, key: &Path) {
    let key = fs::read_to_string(key).unwrap();
    fs::write(path, format!("[127.0.0.1]:{port} {key}")).unwrap();
}

/// A port that nobody listens on, below those that Linux gives to outgoing connections: one of these could take it
/// before the server does that it is meant for. Its `ip_local_port_range` begins at 32768.
pub(crate) fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| rand::random_range(10_000..32_000)).find(free).unwrap()
}
