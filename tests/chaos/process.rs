//! One process that is started, killed and started again.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::support::eventually;

/// Killed when dropped.
pub(crate) struct Process {
    pub(crate) name: String,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Does not start it yet. What it says is added to `<logs>/<name>.log`.
    pub(crate) fn new(
        name: &str,
        logs: &std::path::Path,
        command: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Self {
        let log = logs.join(format!("{name}.log"));
        Self { name: name.to_owned(), command: Box::new(command), log, child: None }
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&mut self) {
        if self.is_running() {
            return;
        }
        let log = || fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = (self.command)();
        let child = command.stdin(Stdio::null()).stdout(log()).stderr(log()).spawn();
        self.child = Some(child.unwrap_or_else(|e| panic!("{} does not start: {e}", self.name)));
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal, named as kill(1) does.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(child) = &self.child {
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
        }
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn until_ended(&mut self) {
        let what = format!("{}, asked to stop, has ended", self.name);
        eventually(&what, async || (!self.is_running()).then_some(())).await;
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The end of its log.
    pub(crate) fn last_lines(&self, count: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
