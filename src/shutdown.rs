//! When to stop: one token for the whole process, one tracker for what must end before it exits.

use std::time::Duration;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Handed to everything that runs in the background.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Shutdown {
    /// A fresh one, not yet triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything to stop.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// True once asked.
    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Ends when asked to stop.
    pub async fn triggered(&self) {
        self.token.cancelled().await;
    }

    /// Runs `work` in the background; [`Self::wait`] waits for it.
    pub fn spawn<F>(&self, work: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(work)
    }

    /// Sleeps, but no longer than until asked to stop. True when asked to stop.
    pub async fn sleep(&self, duration: Duration) -> bool {
        tokio::select! {
            () = self.token.cancelled() => true,
            () = tokio::time::sleep(duration) => false,
        }
    }

    /// Waits for all that was spawned, at most `limit`. False when something still runs.
    pub async fn wait(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

/// Ends at the first SIGTERM or SIGINT (Ctrl-C).
pub async fn signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => Ok("SIGTERM"),
        _ = int.recv() => Ok("SIGINT"),
    }
}
