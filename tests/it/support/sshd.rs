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
            let log = fs::File::create(path("log")).unwrap();
            let mut child = Command::new("/usr/sbin/sshd")
                .args(["-D", "-e", "-f"])
                .arg(path("conf"))
                .args(["-p", &port.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("/usr/sbin/sshd is needed for the tests");
            let listens = eventually("sshd listens or ends", async || {
                if child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                let said = fs::read_to_string(path("log")).unwrap();
                said.contains("Server listening on").then_some(true)
            })
            .await;
            if listens {
                write_known_hosts(&path("known_hosts"), port, &path("host_key.pub"));
                write_known_hosts(&path("wrong_hosts"), port, &path("other_key.pub"));
                fs::write(path("no_hosts"), "").unwrap();
                return Self { child, port, dir };
            }
        }
        panic!("sshd does not start: {}", fs::read_to_string(path("log")).unwrap());
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

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
