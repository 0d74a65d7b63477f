//! When to stop: first what is new is refused, then all ends. One tracker for what must end before the process exits.

use std::{fmt, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Handed to everything that runs in the background.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    token: CancellationToken,
    tracker: TaskTracker,
    runs: TaskTracker,
}

impl Shutdown {
    /// A fresh one, not yet triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on nothing new is taken on; what is under way goes on.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// True once nothing new is taken on.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Ends when nothing new is to be taken on.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Asks everything to stop.
    pub fn trigger(&self) {
        self.draining.cancel();
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

    /// The same for a run on a host; [`Self::wait_for_runs`] waits for it.
    pub fn spawn_run<F>(&self, work: F)
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.tracker.spawn(self.runs.track_future(work));
    }

    /// How many runs on hosts are followed.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Waits for the runs on hosts that are followed, at most `limit`. False when some go on.
    pub async fn wait_for_runs(&self, limit: Duration) -> bool {
        self.runs.close();
        tokio::time::timeout(limit, self.runs.wait()).await.is_ok()
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

/// What asks a process to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A supervisor's.
    Term,
    /// Ctrl-C, by a person.
    Interrupt,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Term => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Ends at the first SIGTERM or SIGINT (Ctrl-C).
pub async fn signal() -> std::io::Result<Signal> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => Ok(Signal::Term),
        _ = int.recv() => Ok(Signal::Interrupt),
    }
}
