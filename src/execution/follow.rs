//! Follows a run to its end: reads its output from an offset, again and again, and lets the caller say stop.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    executor::Executor,
    read::{Chunk, RunState, read},
    run_dir::RunDir,
};
use crate::telemetry::error_chain;

/// Bytes of output a read asks for.
const CHUNK: usize = 256 << 10;
/// So much of a run's output is handed over without a gap. Of what comes behind it, only the end is read, again and again.
pub const WHOLE: u64 = 10 << 20;
/// How much of the end.
const TAIL: usize = 1 << 20;
/// Between two reads: the first after output, and the most when it is quiet.
const POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Between two tries while the host is away.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// The caller hears from us at least this often.
const BEAT: Duration = Duration::from_secs(2);
/// A gate without a CLI behind it, or no gate at all, for longer than this is the end.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What the caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beat {
    /// Output. The next one begins where this one ends, or, behind [`WHOLE`], further on.
    Output {
        /// Where in the run's output it begins.
        offset: u64,
        /// Never empty.
        data: Vec<u8>,
    },
    /// Nothing new; a chance to look at the lease.
    Quiet,
    /// The host does not answer; it is tried again until the caller stops.
    Away {
        /// Why, for a person.
        reason: String,
    },
}

/// What the caller says to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Follow no longer; the run goes on.
    Stop,
}

/// Why following ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The run has ended, or will never start; the end of its output was handed over. [`RunState::Starting`] and
    /// [`RunState::NotStarted`] stand here when it stayed so for 30 s.
    Final(RunState),
    /// The caller said stop.
    Stopped,
}

/// How far following came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Where the output that was handed over ends.
    pub offset: u64,
    /// Why it ended.
    pub end: End,
}

/// Reads from `offset` on until the run ends or `sink` says stop.
///
/// `sink` hears of output, and at least every two seconds or so of anything, also while the host is away or slow. Its
/// error ends following and is handed back.
pub async fn follow<E, S, F>(
    executor: &dyn Executor,
    run: &RunDir,
    mut offset: u64,
    mut sink: S,
) -> Result<Followed, E>
where
    S: FnMut(Beat) -> F,
    F: Future<Output = Result<Flow, E>>,
{
    let mut poll = POLL.0;
    let mut retry = RETRY.0;
    let mut not_started_since: Option<Instant> = None;
    let mut next_beat = Instant::now() + BEAT;
    let stopped = |offset| Ok(Followed { offset, end: End::Stopped });
    loop {
        let wait;
        let answer = {
            let most = if offset < WHOLE { CHUNK } else { TAIL };
            let mut reading = std::pin::pin!(read(executor, run, offset, most));
            loop {
                tokio::select! {
                    answer = &mut reading => break answer,
                    () = sleep_until(next_beat) => {
                        // The read is slow; the caller must not wait for it.
                        if sink(Beat::Quiet).await? == Flow::Stop {
                            return stopped(offset);
                        }
                        next_beat = Instant::now() + BEAT;
                    }
                }
            }
        };
        match answer {
            Ok(Chunk { data, size, state }) => {
                retry = RETRY.0;
                let begins = offset;
                offset += data.len() as u64;
                poll = if data.is_empty() { (poll * 2).min(POLL.1) } else { POLL.0 };
                if !data.is_empty() {
                    next_beat = Instant::now() + BEAT;
                    if sink(Beat::Output { offset: begins, data }).await? == Flow::Stop {
                        return stopped(offset);
                    }
                }
                let much = offset >= WHOLE;
                if much {
                    offset = offset.max(size.saturating_sub(TAIL as u64));
                    poll = POLL.1;
                }
                if offset < size && (!much || state.is_final()) {
                    // There is more already.
                    continue;
                }
                if state.is_final() || is_late(&state, &mut not_started_since) {
                    return Ok(Followed { offset, end: End::Final(state) });
                }
                wait = poll;
            }
            Err(error) => {
                next_beat = Instant::now() + BEAT;
                if sink(Beat::Away { reason: error_chain(&error) }).await? == Flow::Stop {
                    return stopped(offset);
                }
                wait = retry;
                retry = (retry * 2).min(RETRY.1);
            }
        }
        let until = Instant::now() + wait;
        loop {
            sleep_until(until.min(next_beat)).await;
            if Instant::now() >= next_beat {
                if sink(Beat::Quiet).await? == Flow::Stop {
                    return stopped(offset);
                }
                next_beat = Instant::now() + BEAT;
            }
            if Instant::now() >= until {
                break;
            }
        }
    }
}

/// True when a start is overdue.
fn is_late(state: &RunState, not_started_since: &mut Option<Instant>) -> bool {
    match state {
        RunState::Starting { age_secs } if *age_secs > START_LIMIT.as_secs() => true,
        RunState::Starting { .. } | RunState::NotStarted => {
            not_started_since.get_or_insert_with(Instant::now).elapsed() > START_LIMIT
        }
        _ => {
            *not_started_since = None;
            false
        }
    }
}
