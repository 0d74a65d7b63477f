//! The watchdog: names who holds back vacuum. While an old snapshot is open, no dead row of any table is removed; claims
//! then read past more of them each minute.

use std::time::Duration;

use super::Replica;
use crate::{
    store::{StoreError, VacuumBlocker},
    telemetry::error_chain,
};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// A transaction may be open for so long.
const LONG: Duration = Duration::from_secs(300);

/// The loop.
pub(super) async fn run(replica: &Replica) {
    while !replica.shutdown.sleep(PERIOD.mul_f64(rand::random_range(0.8..1.2))).await {
        if let Err(error) = round(replica, LONG).await {
            tracing::warn!(error = %error_chain(&error), "no look for who holds back vacuum was possible");
        }
    }
}

async fn round(replica: &Replica, longer: Duration) -> Result<(), StoreError> {
    for blocker in replica.store.list_vacuum_blockers(longer).await? {
        tracing::warn!(
            blocker.kind = blocker.kind,
            blocker.name = blocker.name,
            blocker.pid = blocker.pid,
            blocker.state = blocker.state,
            blocker.age_secs = blocker.age_secs.map(f64::round),
            "vacuum is held back, and claims slow down; {}",
            mend(&blocker)
        );
    }
    Ok(())
}

/// What to do about it.
fn mend(blocker: &VacuumBlocker) -> String {
    match (blocker.kind.as_str(), blocker.pid) {
        ("transaction", Some(pid)) => {
            format!("if nobody needs that transaction any more: select pg_terminate_backend({pid})")
        }
        ("prepared transaction", _) => {
            "if its coordinator is gone: `rollback prepared` with that name".to_owned()
        }
        _ => "if its standby is gone: select pg_drop_replication_slot with that name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_how_to_mend_it() {
        let of = |kind: &str, pid| {
            mend(&VacuumBlocker {
                kind: kind.into(),
                pid,
                name: "x".into(),
                state: None,
                age_secs: None,
            })
        };
        assert!(of("transaction", Some(7)).contains("pg_terminate_backend(7)"));
        assert!(of("prepared transaction", None).contains("rollback prepared"));
        assert!(of("replication slot", None).contains("pg_drop_replication_slot"));
    }
}
