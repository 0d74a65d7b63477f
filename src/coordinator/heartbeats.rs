//! Heartbeats of agents, gathered and written in batches: one narrow row a session, never one a task.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::Replica;
use crate::{model::SessionId, telemetry::error_chain};

/// How often they are written.
const FLUSH: Duration = Duration::from_millis(500);

/// Sessions heard of since the last batch. Any authenticated call of an agent counts.
#[derive(Debug, Default)]
pub struct Heartbeats {
    heard: Mutex<BTreeSet<SessionId>>,
}

impl Heartbeats {
    /// This session's agent has just called.
    pub fn touch(&self, session: SessionId) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(session);
    }

    fn take(&self) -> Vec<SessionId> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .collect()
    }
}

/// The loop. It goes on until the very end, so that agents do not fall silent while a replica drains.
pub(super) async fn run(replica: &Replica) {
    loop {
        let stop = replica.shutdown.sleep(FLUSH).await;
        let heard = replica.heartbeats.take();
        if !heard.is_empty()
            && let Err(error) = replica.pulse.touch_sessions(&heard).await
        {
            tracing::warn!(error = %error_chain(&error), sessions = heard.len(), "heartbeats of agents were not stored");
            for session in heard {
                replica.heartbeats.touch(session);
            }
        }
        if stop {
            return;
        }
    }
}
