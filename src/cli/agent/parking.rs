//! Leaving a CLI alone whose allowance is used up or whose login is refused.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// When the CLI did not say how long; doubles each time.
const FIRST: Duration = Duration::from_secs(15 * 60);
const LONGEST: Duration = Duration::from_secs(4 * 60 * 60);

/// Until when no work is taken.
#[derive(Debug, Default)]
pub(super) struct Parking {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// In a row.
    times: u32,
}

impl Parking {
    /// Takes no work for so long, or for longer each time when nobody knows; answers how long.
    pub(super) fn park(&self, wait: Option<Duration>) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let doubled = FIRST.saturating_mul(1 << state.times.min(10)).min(LONGEST);
        let wait = wait.unwrap_or(doubled);
        state.times = state.times.saturating_add(1);
        let until = Instant::now() + wait;
        state.until = Some(state.until.map_or(until, |other| other.max(until)));
        wait
    }

    /// It works again.
    pub(super) fn clear(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    fn until(&self) -> Option<Instant> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).until
    }

    /// Ends when work may be taken.
    pub(super) async fn over(&self) {
        while let Some(until) = self.until().filter(|until| *until > Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_until_it_works_again() {
        let parking = Parking::default();
        parking.over().await;
        assert_eq!(parking.park(None), FIRST);
        assert_eq!(parking.park(None), FIRST * 2);
        let before = Instant::now();
        parking.over().await;
        assert!(before.elapsed() >= FIRST * 2);
        parking.clear();
        assert_eq!(parking.park(Some(Duration::from_secs(7))), Duration::from_secs(7));
    }
}
