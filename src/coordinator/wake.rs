//! Wake-ups: in memory for this replica at once, by NOTIFY for the others at most once per few milliseconds. Always a
//! hint; a poll is the truth.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use super::Replica;
use crate::telemetry::error_chain;

/// What happened, as the others are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// A task is ready, or a slot is free.
    Ready,
    /// A lease was ended by somebody else than its holder.
    Revoked,
    /// Somebody wants to know how the hosts are.
    Probe,
}

impl Hint {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Revoked => "revoked",
            Self::Probe => "probe",
        }
    }
}

/// Who sleeps, and what the others are yet to be told.
#[derive(Debug)]
pub struct Wake {
    matchmaker: Notify,
    dispatcher: Notify,
    /// Since when the matchmaker has had a hint that it has not looked at.
    hinted: Mutex<Option<Instant>>,
    revoked: watch::Sender<u64>,
    probers: Notify,
    outgoing: Mutex<BTreeSet<Hint>>,
    sender: Notify,
}

impl Wake {
    /// Nobody sleeps yet.
    pub(super) fn new() -> Self {
        Self {
            matchmaker: Notify::new(),
            dispatcher: Notify::new(),
            hinted: Mutex::default(),
            revoked: watch::Sender::new(0),
            probers: Notify::new(),
            outgoing: Mutex::default(),
            sender: Notify::new(),
        }
    }

    /// A commit of this replica made a task ready or a slot free.
    pub fn ready(&self) {
        self.wake(Hint::Ready);
        self.tell(Hint::Ready);
    }

    /// A commit of this replica ended a lease under its holder's hands.
    pub fn revoked(&self) {
        self.wake(Hint::Revoked);
        self.tell(Hint::Revoked);
    }

    /// Every replica is to probe its hosts now.
    pub fn probe(&self) {
        self.wake(Hint::Probe);
        self.tell(Hint::Probe);
    }

    /// Another replica, or plain SQL, said this. What is unknown wakes everybody.
    pub(super) fn heard(&self, payload: &str) {
        match payload {
            "ready" => self.wake(Hint::Ready),
            "revoked" => self.wake(Hint::Revoked),
            "probe" => self.wake(Hint::Probe),
            _ => self.wake_all(),
        }
    }

    /// Something may have been missed.
    pub(super) fn wake_all(&self) {
        self.wake(Hint::Ready);
        self.wake(Hint::Revoked);
    }

    /// A host has become reachable, here: nobody else needs to know.
    pub(super) fn dispatch(&self) {
        self.dispatcher.notify_one();
    }

    /// Ends when the matchmaker has something to look at.
    pub(super) async fn matchmaker(&self) {
        self.matchmaker.notified().await;
        let hinted = self.hinted.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(since) = hinted {
            crate::metrics::wake(since.elapsed());
        }
    }

    /// Wakes only the matchmaker: somebody has begun to wait.
    pub(super) fn match_now(&self) {
        self.matchmaker.notify_one();
    }

    /// Ends when the dispatcher has something to look at.
    pub(super) async fn dispatcher(&self) {
        self.dispatcher.notified().await;
    }

    /// Ends when the hosts are to be probed now.
    pub(super) async fn prober(&self) {
        self.probers.notified().await;
    }

    /// Changes whenever some lease was revoked.
    pub(super) fn subscribe_revoked(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    fn wake(&self, hint: Hint) {
        match hint {
            Hint::Ready => {
                self.hinted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert_with(Instant::now);
                self.matchmaker.notify_one();
                self.dispatcher.notify_one();
            }
            Hint::Revoked => self.revoked.send_modify(|n| *n += 1),
            Hint::Probe => self.probers.notify_waiters(),
        }
    }

    fn tell(&self, hint: Hint) {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner).insert(hint);
        self.sender.notify_one();
    }

    fn take_outgoing(&self) -> BTreeSet<Hint> {
        std::mem::take(&mut self.outgoing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The one sender of NOTIFY: commits with a pending NOTIFY queue on one cluster-wide lock, so it is not part of anybody's
/// transaction.
pub(super) async fn send(replica: &Replica) {
    while !replica.shutdown.is_triggered() {
        tokio::select! {
            () = replica.shutdown.triggered() => break,
            () = replica.wake.sender.notified() => {}
        }
        for hint in replica.wake.take_outgoing() {
            if let Err(error) = replica.store.notify(hint.as_str()).await {
                // The others have their poll.
                tracing::debug!(error = %error_chain(&error), "the other replicas could not be woken");
            }
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Hears what others say, on a connection of its own; connects again for ever, and scans after each time.
pub(super) async fn listen(replica: &Replica) {
    let mut pause = Duration::from_millis(100);
    while !replica.shutdown.is_triggered() {
        match replica.store.listen().await {
            Ok(mut listener) => {
                replica.set_listening(Ok(()));
                pause = Duration::from_millis(100);
                replica.wake.wake_all();
                let error = loop {
                    tokio::select! {
                        () = replica.shutdown.triggered() => return,
                        heard = listener.next() => match heard {
                            Ok(payload) => replica.wake.heard(&payload),
                            Err(error) => break error,
                        },
                    }
                };
                let error = error_chain(&error);
                tracing::warn!(error, "the listener lost its connection; polling until it is back");
                replica.set_listening(Err(error));
            }
            Err(error) => replica.set_listening(Err(error_chain(&error))),
        }
        let jitter = rand::random_range(0.5..1.5);
        if replica.shutdown.sleep(pause.mul_f64(jitter)).await {
            return;
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}
