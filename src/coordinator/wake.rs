//! Wake-ups: in memory for this replica at once, by NOTIFY for the others at most once per few milliseconds. Always a
//! hint; a poll is the truth.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use super::{
    Replica,
    hints::{Hint, payload, ready_hints},
};
use crate::{model::SessionId, store::ReadyPlace, telemetry::error_chain};

/// So many payloads are said before the first of them is heard; more, only while nothing is heard at all.
const ECHOES: usize = 64;

/// Between two payloads of one replica at least: commits with a pending NOTIFY queue on one cluster-wide lock.
const PAUSE: Duration = Duration::from_millis(3);

/// What the others are yet to be told, and when they were told something last.
#[derive(Debug, Default)]
struct Outgoing {
    hints: BTreeSet<Hint>,
    said: Option<Instant>,
}

impl Outgoing {
    /// How long nothing may be said yet.
    fn pause(&self) -> Option<Duration> {
        PAUSE.checked_sub(self.said?.elapsed())
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
    scheduler: Notify,
    runner: Notify,
    outgoing: Mutex<Outgoing>,
    sender: Notify,
    /// What was said here and is going to be heard here, too: it was acted on before it was said.
    echoes: Mutex<VecDeque<String>>,
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
            scheduler: Notify::new(),
            runner: Notify::new(),
            outgoing: Mutex::default(),
            sender: Notify::new(),
            echoes: Mutex::default(),
        }
    }

    /// Ends when the matchmaker has something to look at.
    pub(super) async fn matchmaker(&self) {
        self.matchmaker.notified().await;
        let hinted = self.hinted.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(since) = hinted {
            crate::metrics::wake(since.elapsed());
        }
    }

    /// Wakes only the matchmaker: somebody has begun to wait, or may take more.
    pub(super) fn match_now(&self) {
        self.matchmaker.notify_one();
    }

    /// A host has become reachable, here: nobody else needs to know.
    pub(super) fn dispatch(&self) {
        self.dispatcher.notify_one();
    }

    /// Ends when the dispatcher has something to look at.
    pub(super) async fn dispatcher(&self) {
        self.dispatcher.notified().await;
    }

    /// Ends when the scheduler has something to look at.
    pub(super) async fn scheduler(&self) {
        self.scheduler.notified().await;
    }

    /// Ends when there may be runs to take over.
    pub(super) async fn runner(&self) {
        self.runner.notified().await;
    }

    /// Ends when the hosts are to be probed now.
    pub(super) async fn prober(&self) {
        self.probers.notified().await;
    }

    /// Changes whenever some lease was revoked.
    pub(super) fn subscribe_revoked(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    fn tell(&self, hints: impl IntoIterator<Item = Hint>) {
        let mut outgoing = self.outgoing();
        outgoing.hints.extend(hints);
        if !outgoing.hints.is_empty() {
            self.sender.notify_one();
        }
    }

    /// Tells the others of a task that is being committed, if something may be said right now; later is after the commit.
    pub(super) fn tell_soon(&self, place: ReadyPlace) -> bool {
        let at_once = self.outgoing().pause().is_none();
        if at_once {
            self.tell([Hint::Soon(place)]);
        }
        at_once
    }

    /// What is to be said now, if there is anything.
    fn say(&self, outgoing: &mut Outgoing) -> Option<String> {
        let hints = std::mem::take(&mut outgoing.hints);
        if hints.is_empty() {
            return None;
        }
        outgoing.said = Some(Instant::now());
        let payload = payload(&hints);
        self.will_say(&payload);
        Some(payload)
    }

    fn echoes(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.echoes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This is going to be said.
    fn will_say(&self, payload: &str) {
        let mut echoes = self.echoes();
        if echoes.len() == ECHOES {
            echoes.pop_front();
        }
        echoes.push_back(payload.to_owned());
    }

    /// True for what this replica said itself, or for another's very same words, in whose place it then hears its own.
    fn is_echo(&self, payload: &str) -> bool {
        let mut echoes = self.echoes();
        let place = echoes.iter().position(|echo| echo == payload);
        place.and_then(|place| echoes.remove(place)).is_some()
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// A commit of this replica made a task ready or a slot free; nobody says which. It may also be ready only later.
    pub fn wake_ready(&self) {
        self.wake_scheduler();
        self.act_on(&Hint::Anything);
        self.wake.tell([Hint::Anything]);
    }

    /// A commit of this replica made something due, now or later. The others look often enough by themselves.
    pub(super) fn wake_scheduler(&self) {
        self.wake.scheduler.notify_one();
    }

    /// A replica's session has ended.
    pub(super) fn wake_orphaned(&self) {
        self.act_on(&Hint::Orphaned);
        self.wake.tell([Hint::Orphaned]);
    }

    /// A host has become reachable, here: tasks may be pushed to it, and runs on it taken over.
    pub(super) fn host_is_back(&self) {
        self.wake.dispatch();
        self.act_on(&Hint::Orphaned);
    }

    /// A commit of this replica made these tasks ready.
    pub fn wake_ready_at(&self, places: &[ReadyPlace]) {
        self.wake_ready_here(places);
        self.wake.tell(ready_hints(places));
    }

    /// The same where the others have been told.
    pub(super) fn wake_ready_here(&self, places: &[ReadyPlace]) {
        ready_hints(places).for_each(|hint| self.act_on(&hint));
    }

    /// A commit of this replica ended leases of these sessions: they may take more than before.
    pub fn wake_freed(&self, sessions: &[SessionId]) {
        for session in sessions {
            self.act_on(&Hint::Freed(*session));
        }
        self.wake.tell(sessions.iter().copied().map(Hint::Freed));
    }

    /// A commit of this replica ended a lease under its holder's hands.
    pub fn wake_revoked(&self) {
        self.act_on(&Hint::Revoked);
        self.wake.tell([Hint::Revoked]);
    }

    /// A commit of this replica changed who this agent is: its token, or its session. Here it is forgotten at once; the
    /// others are told, and look by themselves within seconds.
    pub fn forget_caller(&self, agent_id: &str) {
        self.act_on(&Hint::Caller(agent_id.to_owned()));
        self.wake.tell([Hint::Caller(agent_id.to_owned())]);
    }

    /// Every replica is to probe its hosts now.
    pub fn wake_probers(&self) {
        self.act_on(&Hint::Probe);
        self.wake.tell([Hint::Probe]);
    }

    /// Something may have been missed.
    pub(super) fn wake_all(&self) {
        self.callers.forget_all();
        self.act_on(&Hint::Anything);
        self.act_on(&Hint::Revoked);
        self.act_on(&Hint::Orphaned);
        self.wake_scheduler();
    }

    fn act_on(&self, hint: &Hint) {
        if matches!(hint, Hint::Anything | Hint::Ready(_)) {
            let mut hinted = self.wake.hinted.lock().unwrap_or_else(PoisonError::into_inner);
            hinted.get_or_insert_with(Instant::now);
        }
        match hint {
            Hint::Anything => {
                self.store.ready_somewhere();
                self.matchmaker.look_again();
                self.wake.match_now();
                self.wake.dispatch();
            }
            Hint::Revoked => self.wake.revoked.send_modify(|n| *n += 1),
            Hint::Ready(place) | Hint::Soon(place) => {
                self.store.ready_at(&[*place]);
                self.wake.match_now();
                self.wake.dispatch();
            }
            Hint::Freed(session) => {
                if self.matchmaker.freed(&[*session]) {
                    self.wake.match_now();
                }
            }
            Hint::Caller(agent_id) => {
                self.callers.forget(agent_id);
                self.store.forget_agent(agent_id);
                // Polls of a session that has ended are told.
                if self.matchmaker.look_at_unknown(self) {
                    self.wake.match_now();
                }
            }
            Hint::Probe => self.wake.probers.notify_waiters(),
            Hint::Orphaned => self.wake.runner.notify_one(),
        }
    }

    /// Another replica, or plain SQL, said this.
    fn heard(self: &Arc<Self>, payload: &str) {
        let mut soon = Vec::new();
        for word in payload.split(' ') {
            match Hint::parse(word) {
                _ if word == "callers" => self.callers.forget_all(),
                Hint::Soon(place) => soon.push(place),
                hint => self.act_on(&hint),
            }
        }
        if !soon.is_empty() {
            tokio::spawn(when_created(Arc::clone(self), soon));
        }
    }
}

/// Another replica commits these tasks. Whoever looked before that would see nothing, and not look again.
async fn when_created(replica: Arc<Replica>, places: Vec<ReadyPlace>) {
    if let Err(error) = replica.store.await_creations(&places).await {
        // As if it was told of after the commit, which it mostly is by now; else the poll finds it.
        tracing::debug!(error = %error_chain(&error), "the creation of a task could not be waited for");
    }
    replica.wake_ready_here(&places);
}

/// The one sender of NOTIFY: commits with a pending NOTIFY queue on one cluster-wide lock, so it is not part of anybody's
/// transaction.
pub(super) async fn send(replica: &Replica) {
    while !replica.shutdown.is_triggered() {
        tokio::select! {
            () = replica.shutdown.triggered() => break,
            () = replica.wake.sender.notified() => {}
        }
        while let Some(pause) = { replica.wake.outgoing().pause() } {
            tokio::time::sleep(pause).await;
        }
        let Some(payload) = replica.wake.say(&mut replica.wake.outgoing()) else { continue };
        if let Err(error) = replica.store.notify(&payload).await {
            replica.wake.is_echo(&payload);
            // The others have their poll.
            tracing::debug!(error = %error_chain(&error), "the other replicas could not be woken");
        }
    }
}

/// Hears what others say, on a connection of its own; connects again for ever, and scans after each time.
pub(super) async fn listen(replica: &Arc<Replica>) {
    let mut pause = Duration::from_millis(100);
    while !replica.shutdown.is_triggered() {
        match replica.store.listen().await {
            Ok(mut listener) => {
                replica.set_listening(Ok(()));
                pause = Duration::from_millis(100);
                // What was said before is not heard any more.
                replica.wake.echoes().clear();
                replica.wake_all();
                let error = loop {
                    tokio::select! {
                        () = replica.shutdown.triggered() => return,
                        heard = listener.next() => match heard {
                            Ok(payload) if replica.wake.is_echo(&payload) => {}
                            Ok(payload) => replica.heard(&payload),
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
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_payload_is_an_echo_once() {
        let wake = Wake::new();
        wake.will_say("*");
        wake.will_say("probe");
        assert!(!wake.is_echo("revoked"));
        assert!(wake.is_echo("probe"));
        assert!(wake.is_echo("*"));
        assert!(!wake.is_echo("*"), "another's");
        (0..=ECHOES).for_each(|n| wake.will_say(&n.to_string()));
        assert!(!wake.is_echo("0"), "nothing is heard");
    }

    #[test]
    fn what_is_being_committed_is_told_unless_something_was_said_just_now() {
        let wake = Wake::new();
        let place = |seq| ReadyPlace { lane_id: 1, priority: 2, seq };
        assert_eq!(wake.say(&mut wake.outgoing()), None, "nobody said anything");
        wake.tell([Hint::Probe]);
        assert!(wake.tell_soon(place(8)));
        let said = wake.say(&mut wake.outgoing());
        assert_eq!(said.as_deref(), Some("soon:1:2:8 probe"), "with what was to be said");
        assert!(wake.is_echo("soon:1:2:8 probe"));
        assert!(
            !wake.tell_soon(place(9)),
            "it would be told later than by a hint after its commit"
        );
        assert!(wake.outgoing().pause().is_some());
        wake.outgoing().said = Instant::now().checked_sub(PAUSE);
        assert_eq!(wake.say(&mut wake.outgoing()), None);
        assert!(wake.tell_soon(place(9)));
    }
}
