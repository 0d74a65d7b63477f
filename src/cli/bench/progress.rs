//! What runs now and how far it is: one line that rewrites itself, on a terminal only.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::Mutex,
    time::{Duration, Instant},
};

const WIDTH: usize = 30;
/// Not drawn more often than this.
const EVERY: Duration = Duration::from_millis(200);

/// The line.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    drawn: Mutex<Option<Instant>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), drawn: Mutex::new(None) }
    }

    /// Says what begins.
    pub(super) fn begin(&self, what: &str) {
        self.draw(what, 0, 1, true);
    }

    /// Says how far it is.
    pub(super) fn at(&self, what: &str, done: usize, all: usize) {
        self.draw(what, done, all, false);
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }

    fn draw(&self, what: &str, done: usize, all: usize, at_once: bool) {
        if !self.shown {
            return;
        }
        let Ok(mut drawn) = self.drawn.try_lock() else { return };
        if !at_once && drawn.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        *drawn = Some(Instant::now());
        let full = (done * WIDTH / all.max(1)).min(WIDTH);
        eprint!("\r\x1b[K[{}{}] {what}", "#".repeat(full), ".".repeat(WIDTH - full));
        let _ = std::io::stderr().flush();
    }
}
