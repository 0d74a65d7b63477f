//! Following: output is stored as it comes, under the lease, until the run ends or somebody else has it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{attempt::Attempt, hosts, until_stored};
use crate::{
    execution::{Beat, End, ExitReason, Flow, Parser, RunState, WHOLE, follow},
    store::{Outcome, StoreError},
};

/// A look at the lease at least this often, also without a hint.
const FENCE: Duration = Duration::from_secs(5);
/// The wrapper on the host ends a run at its deadline; so much later the follower does.
const DEADLINE_GRACE_SECS: i64 = 20;
/// What is stored behind the output that is kept of an attempt, when there is more.
const CUT: &[u8] = b"\n[agent-fleet: the output is cut here; 10 MiB an attempt are kept]\n";
/// A CLI that has said its last word may take so long to end by itself.
const LINGER: Duration = Duration::from_secs(15);

/// Why following was stopped from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// This replica stops; the run goes on for others.
    Shutdown,
    /// The lease is not held any more.
    LeaseGone,
    /// Past its deadline, and the host has not ended it.
    Overdue,
    /// The CLI has said its last word and hangs.
    Lingers,
}

/// What the callback keeps between two beats.
struct Watch {
    parser: Parser,
    /// Where what the parser has seen ends.
    parsed: u64,
    /// Enough is stored.
    cut: bool,
    fence_at: Instant,
    revoked: tokio::sync::watch::Receiver<u64>,
    done_at: Option<Instant>,
    stop: Option<Stop>,
    away: bool,
    /// It has ended by itself, though this was heard only after its deadline.
    in_time: bool,
}

impl Watch {
    /// What the CLI has said from this offset on.
    fn hear(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        self.cut |= end > WHOLE;
        if self.parsed != offset {
            self.parser.skip();
        }
        self.parsed = end;
        self.parser.feed(data);
        // Some go on after what looked like their last word.
        let since = self.done_at.unwrap_or_else(Instant::now);
        self.done_at = self.parser.is_done().then_some(since);
    }
}

impl Attempt {
    /// Follows from an offset of the output to the end, and settles. What is stored before it is read again first, for
    /// the parser.
    pub(super) async fn follow_to_the_end(&self, stored: i64) -> Result<(), StoreError> {
        let stored = u64::try_from(stored).unwrap_or(0);
        let mut offset = stored.min(WHOLE);
        let mut parser = Parser::new(self.output);
        self.feed_stored(&mut parser, offset).await?;
        let watch = Mutex::new(Watch {
            parser,
            parsed: offset,
            cut: stored > WHOLE,
            fence_at: Instant::now() + FENCE,
            revoked: self.replica.wake.subscribe_revoked(),
            done_at: None,
            stop: None,
            away: false,
            in_time: false,
        });
        loop {
            let followed = follow(self.executor.as_ref(), &self.run, offset, |beat| {
                self.on_beat(beat, &watch)
            })
            .await?;
            offset = followed.offset;
            let parser = |watch: Mutex<Watch>| {
                watch.into_inner().unwrap_or_else(PoisonError::into_inner).parser
            };
            let stop = match followed.end {
                End::Final(state) => return self.settle_final(state, parser(watch)).await,
                End::Stopped => lock(&watch).stop.take(),
            };
            match stop {
                None | Some(Stop::Shutdown) => return Ok(()),
                Some(Stop::LeaseGone) => return self.lease_is_gone().await,
                // What could not be ended is not settled either: it would run beside the next attempt. It stays in our
                // name, is looked at again, and is the reaper's when that takes too long.
                Some(Stop::Overdue | Stop::Lingers) if !self.end_on_host().await => return Ok(()),
                // Nobody could hear it when it ended. Its last words count.
                Some(Stop::Overdue) if self.ended_by_itself().await => lock(&watch).in_time = true,
                Some(Stop::Overdue) => {
                    let reason = "its deadline passed".to_owned();
                    return self.settle(Outcome::TimedOut, Some(reason), None, None).await;
                }
                Some(Stop::Lingers) => {
                    return self.settle_exit(parser(watch), None, ExitReason::Exited).await;
                }
            }
        }
    }

    /// True when its host says that it has ended, and was not ended.
    async fn ended_by_itself(&self) -> bool {
        matches!(
            self.state_on_host().await,
            Ok(RunState::Exited { reason: ExitReason::Exited, .. })
        )
    }

    async fn settle_final(&self, state: RunState, parser: Parser) -> Result<(), StoreError> {
        match state {
            RunState::Exited { code, reason } => self.settle_exit(parser, Some(code), reason).await,
            RunState::Vanished => {
                self.fail("its process is gone from the host without an exit code").await
            }
            RunState::Rebooted => self.fail("its host was rebooted").await,
            // The gate was shut: whoever did it ended the lease, or the start was cut off.
            RunState::Closed => {
                super::attempt::release(
                    &self.replica,
                    self.held,
                    "its run was prevented on the host",
                    Some(1),
                )
                .await
            }
            RunState::NotStarted | RunState::Starting { .. } if !self.end_on_host().await => Ok(()),
            // The start never arrived, and now its gate is shut: no attempt.
            RunState::NotStarted => {
                let reason = "its start never arrived on the host";
                super::attempt::release(&self.replica, self.held, reason, Some(1)).await
            }
            RunState::Starting { .. } => {
                self.fail("its run had not begun 30 s after the start").await
            }
            // Nothing final.
            RunState::Running => Ok(()),
        }
    }

    /// The parser has to see the whole stream, but not what we put behind it.
    async fn feed_stored(&self, parser: &mut Parser, until: u64) -> Result<(), StoreError> {
        let until = i64::try_from(until).unwrap_or(i64::MAX);
        let mut offset = 0;
        while offset < until {
            let page = until_stored!(self.replica, async {
                self.replica
                    .store
                    .read_logs(self.held.task_id, Some(self.run.run_lease), offset)
                    .await
            })?;
            let Some(page) = page.filter(|p| !p.chunks.is_empty()) else { break };
            for chunk in &page.chunks {
                let left = usize::try_from(until - chunk.offset).unwrap_or(0);
                parser.feed(&chunk.data[..chunk.data.len().min(left)]);
            }
            offset = page.next_offset;
        }
        Ok(())
    }

    async fn on_beat(&self, beat: Beat, watch: &Mutex<Watch>) -> Result<Flow, StoreError> {
        let stop = match beat {
            Beat::Output { offset, data } => {
                let cut = {
                    let mut watch = lock(watch);
                    watch.away = false;
                    watch.cut
                };
                let kept = if cut { Vec::new() } else { kept_of(offset, &data) };
                if kept.is_empty() || self.store_output(offset.min(WHOLE), &kept).await? {
                    lock(watch).hear(offset, &data);
                    // A run that always has something to say has no quiet moment to look in.
                    self.look(watch).await?
                } else {
                    Some(Stop::LeaseGone)
                }
            }
            Beat::Away { reason } => {
                let first = !std::mem::replace(&mut lock(watch).away, true);
                if first {
                    tracing::warn!(task.id = %self.held.task_id, host.id = self.host_id, reason, "the host of a run is away; its output is followed on when it is back");
                    hosts::set_offline(&self.replica, &self.host_id, &reason).await;
                }
                self.look(watch).await?
            }
            Beat::Quiet => {
                lock(watch).away = false;
                self.look(watch).await?
            }
        };
        lock(watch).stop = stop;
        Ok(if stop.is_some() { Flow::Stop } else { Flow::Continue })
    }

    /// True when the chunk is stored, now or by an earlier try whose outcome was not known.
    async fn store_output(&self, offset: u64, data: &[u8]) -> Result<bool, StoreError> {
        let store = &self.replica.store;
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let run_lease = self.run.run_lease;
        let stored = until_stored!(self.replica, async {
            store.append_run_output(&self.held, run_lease, offset, data).await
        })?;
        if stored {
            return Ok(true);
        }
        let state = until_stored!(self.replica, store.check_lease(self.held.task_id))?;
        let end = offset + i64::try_from(data.len()).unwrap_or(0);
        Ok(state.is_some_and(|s| s.is_held_by(&self.held) && s.next_offset == Some(end)))
    }

    async fn look(&self, watch: &Mutex<Watch>) -> Result<Option<Stop>, StoreError> {
        let (due, lingers) = {
            let mut watch = lock(watch);
            let hinted = watch.revoked.has_changed().unwrap_or(false);
            let due = hinted || Instant::now() >= watch.fence_at;
            if due {
                watch.revoked.mark_unchanged();
                watch.fence_at = Instant::now() + FENCE;
            }
            (due, watch.done_at.is_some_and(|at| at.elapsed() > LINGER))
        };
        let mut overdue = false;
        if due {
            let store = &self.replica.store;
            let state = until_stored!(self.replica, store.check_lease(self.held.task_id))?;
            let Some(state) = state.filter(|s| s.is_held_by(&self.held)) else {
                return Ok(Some(Stop::LeaseGone));
            };
            overdue = state.overdue_secs.is_some_and(|secs| secs > DEADLINE_GRACE_SECS)
                && !lock(watch).in_time;
        }
        // After the lease: a run that was just called off is nobody's to come back for.
        if self.replica.shutdown.is_triggered() {
            return Ok(Some(Stop::Shutdown));
        }
        if lingers {
            return Ok(Some(Stop::Lingers));
        }
        Ok(overdue.then_some(Stop::Overdue))
    }
}

/// What is stored of output at an offset: all, or as much as is still to be kept and the mark.
fn kept_of(offset: u64, data: &[u8]) -> Vec<u8> {
    let room = usize::try_from(WHOLE.saturating_sub(offset)).unwrap_or(usize::MAX);
    match data.get(..room) {
        Some(kept) if kept.len() < data.len() => [kept, CUT].concat(),
        _ => data.to_vec(),
    }
}

/// Held for a moment only, never over an await.
fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OutputFormat;

    #[test]
    fn who_goes_on_after_a_last_word_does_not_linger() {
        let mut watch = Watch {
            parser: Parser::new(OutputFormat::OpencodeJson),
            parsed: 0,
            cut: false,
            fence_at: Instant::now(),
            revoked: tokio::sync::watch::channel(0).1,
            done_at: None,
            stop: None,
            away: false,
            in_time: false,
        };
        let stop = b"{\"type\":\"step_finish\",\"part\":{\"reason\":\"stop\"}}\n";
        watch.hear(0, stop);
        let since = watch.done_at;
        assert!(since.is_some());
        watch.hear(watch.parsed, b"\n");
        assert_eq!(watch.done_at, since);
        watch.hear(watch.parsed, b"{\"type\":\"step_start\"}\n");
        assert!(watch.done_at.is_none(), "it has made room in its context, and goes on");
        watch.hear(watch.parsed, stop);
        assert!(watch.done_at > since);
    }
}
