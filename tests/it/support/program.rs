//! The program itself, as a process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use tempfile::TempDir;

use super::{eventually, sshd::free_port};

/// The program with nothing of this process's settings.
pub(crate) fn agent_fleet(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-fleet"));
    command.args(args).stdin(Stdio::null());
    // No configuration lies here.
    command.current_dir("/");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let ours = ["AGENT_FLEET_", "OTEL_"].iter().any(|prefix| name.starts_with(prefix));
        if ours || ["DATABASE_URL", "RUST_LOG"].contains(&&*name) {
            command.env_remove(name);
        }
    }
    command
}

/// A program of the system, also when it lies where only root looks.
pub(crate) fn system(name: &str) -> PathBuf {
    let in_sbin = Path::new("/usr/sbin").join(name);
    if in_sbin.exists() { in_sbin } else { PathBuf::from(name) }
}

/// What a command that ended said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command of the program to its end.
pub(crate) async fn run(mut command: Command) -> Said {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A process that goes on until it is told to stop. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    dir: TempDir,
}

impl Program {
    /// Starts it.
    pub(crate) fn start(mut command: Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| fs::File::create(dir.path().join(name)).unwrap();
        let child = command.stdout(file("stdout")).stderr(file("stderr")).spawn().unwrap();
        Self { child, dir }
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    /// Sends a signal, named as kill(1) does.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// True once it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("the process ends", async || self.child.try_wait().unwrap()).await
    }

    /// Waits until it has said this on stderr.
    pub(crate) async fn until_said(&mut self, text: &str) {
        eventually(&format!("the process says {text:?}"), async || {
            let said = self.stderr();
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}: {said}");
            }
            said.contains(text).then_some(())
        })
        .await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `serve` as a process, on a port of its own.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) program: Program,
    pub(crate) url: String,
    /// Held for its drop.
    _config: TempDir,
}

impl Serve {
    /// Starts it with a configuration file and does not wait.
    pub(crate) fn start(database_url: &str, replica_id: &str, toml: &str) -> Self {
        Self::start_on(free_port(), database_url, replica_id, toml, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn start_in(
        environment: &[(&str, &str)],
        database_url: &str,
        replica_id: &str,
        toml: &str,
    ) -> Self {
        Self::start_as(free_port(), database_url, replica_id, toml, &[], environment)
    }

    /// The same on this port, with arguments besides.
    pub(crate) fn start_on(
        port: u16,
        database_url: &str,
        replica_id: &str,
        toml: &str,
        args: &[&str],
    ) -> Self {
        Self::start_as(port, database_url, replica_id, toml, args, &[])
    }

    fn start_as(
        port: u16,
        database_url: &str,
        replica_id: &str,
        toml: &str,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let config = tempfile::tempdir().unwrap();
        let path: PathBuf = config.path().join("agent-fleet.toml");
        fs::write(&path, toml).unwrap();
        let listen = format!("127.0.0.1:{port}");
        let mut command =
            agent_fleet(&["serve", "--listen", &listen, "--replica-id", replica_id, "--config"]);
        command.arg(&path).args(args);
        command.env("DATABASE_URL", database_url).envs(environment.iter().copied());
        if !toml.contains("format = \"json\"") {
            command.env("AGENT_FLEET_LOG_FORMAT", "text");
        }
        if !toml.contains("drain_grace") {
            command.env("AGENT_FLEET_DRAIN_GRACE", "0s");
        }
        let program = Program::start(command);
        Self { program, url: format!("http://{listen}"), _config: config }
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&mut self) {
        agent_fleet::tls::install_provider();
        let http = reqwest::Client::new();
        eventually("serve is ready", async || {
            if let Some(status) = self.program.child.try_wait().unwrap() {
                panic!("serve ended with {status}: {}", self.program.stderr());
            }
            let reply = http.get(format!("{}/readyz", self.url)).send().await.ok()?;
            reply.status().is_success().then_some(())
        })
        .await;
    }

    /// A client command for it.
    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = agent_fleet(args);
        command.env("AGENT_FLEET_URL", &self.url);
        command
    }
}

/// Writes a script and answers the argument vector that runs it, in TOML.
pub(crate) fn script(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    format!("[\"sh\", \"{}\"]", path.display())
}
