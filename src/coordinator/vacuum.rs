//! Vacuum of the queue's table while much is taken from it. What was taken stays in the ready indexes until a vacuum has come
//! by, and their size is what is taken between two. Autovacuum looks by its `autovacuum_naptime`, a minute by default, and
//! later when it has other databases to see; so the queue's own pace is kept here. It stays in charge of all else.

use std::time::Duration;

use super::Replica;
use crate::telemetry::error_chain;

/// From the begin of one vacuum to that of the next, at least.
const PERIOD: Duration = Duration::from_millis(500);
/// Between two looks whether it is due: not long, since the other vacuum may be about to end.
const LOOK: Duration = Duration::from_millis(100);
/// It is not worth a vacuum after fewer claims.
const FEW: i64 = 2_000;
/// No more than a quarter of the time.
const SHARE: u32 = 4;
/// The longest pause: after many vacuums in vain, and after one that failed.
const LONGEST: Duration = Duration::from_secs(10);

/// The loop.
pub(super) async fn run(replica: &Replica) {
    let (mut pause, mut seen, mut vain) = (LOOK, 0, 0);
    while !replica.shutdown.sleep(pause).await {
        pause = LOOK;
        let claimed = replica.matchmaker.claimed();
        let taken = i64::try_from(claimed - seen).unwrap_or(i64::MAX);
        if taken < FEW {
            continue;
        }
        match replica.store.vacuum_tasks(taken).await {
            Ok(None) => {}
            Ok(Some(vacuumed)) => {
                seen = claimed;
                // Once is no more than somebody who analyzes a table.
                vain = if vacuumed.in_vain { vain + 1 } else { 0 };
                pause = pause_after(vacuumed.took, vain);
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the queue's table could not be vacuumed; autovacuum goes on");
                pause = LONGEST;
            }
        }
    }
}

/// After a vacuum that `took` so long and was the last of so many in `vain`.
fn pause_after(took: Duration, vain: u32) -> Duration {
    let in_vain = 2_u32.saturating_pow(vain);
    (took * SHARE).max((PERIOD * in_vain.min(100)).min(LONGEST)) - took
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vacuum_that_takes_long_or_is_in_vain_comes_less_often() {
        for (took, vain, pause) in [
            (0, 0, 500),
            (40, 0, 460),
            (200, 0, 600),
            (2_000, 0, 6_000),
            (100, 1, 900),
            (100, 3, 3_900),
            (1_000, 9, 9_000),
            (1_000, u32::MAX, 9_000),
            (5_000, 9, 15_000),
        ] {
            let took = Duration::from_millis(took);
            assert_eq!(pause_after(took, vain), Duration::from_millis(pause), "{took:?}, {vain}");
        }
    }
}
