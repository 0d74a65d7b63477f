//! One connection: what it waits for, and since when.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::AbortHandle,
};

use super::super::limits::Limits;

/// A connection on which nothing is asked is closed after this. Clients keep theirs for 90 s at most, as a rule, so that
/// none sends on one that is being closed.
const IDLE: Duration = Duration::from_secs(120);
/// When the server closes, who has not sent a whole request has so long to do it.
const CLOSING: Duration = Duration::from_secs(2);
/// A client that takes longer over its body is answered; this one has not even ended after that.
const ANSWERED: Duration = Duration::from_secs(5);

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for the headers of a request, or for the rest of them.
    Head = 1,
    /// Waits for the body.
    Body = 2,
    /// The server works, or the caller polls: nothing is expected from the client.
    Work = 3,
    /// Waits for the next request.
    Idle = 4,
}

/// How long the client has kept a connection waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waits {
    phase: Phase,
    since: Duration,
}

/// One connection. What it does changes a few times in each request, so it is kept in atomics and looked at from outside:
/// no timer runs for it.
#[derive(Debug)]
pub(in crate::api) struct Connection {
    /// What requests in flight are counted by.
    pub(in crate::api) limits: Arc<Limits>,
    /// How long its client may take over headers, body or reply.
    pub(in crate::api) patience: Duration,
    began: Instant,
    /// Milliseconds since `began` × 8 + the phase.
    waits: AtomicU64,
    /// Milliseconds since `began` + 1 when a reply began to be stuck; 0 while none is.
    stuck: AtomicU64,
    /// Bytes of a body that has not come in whole.
    held: AtomicUsize,
    closing: AtomicBool,
    waker: AtomicWaker,
    task: OnceLock<AbortHandle>,
}

impl Connection {
    pub(super) fn new(limits: &Arc<Limits>, patience: Duration) -> Self {
        Self {
            limits: Arc::clone(limits),
            patience,
            began: Instant::now(),
            waits: AtomicU64::new(Phase::Head as u64),
            stuck: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            task: OnceLock::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0)
    }

    fn enter(&self, phase: Phase) {
        self.waits.store((self.now() << 3) | phase as u64, Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.waits.load(Relaxed) & 7 {
            1 => Phase::Head,
            2 => Phase::Body,
            3 => Phase::Work,
            _ => Phase::Idle,
        }
    }

    fn waits(&self) -> Waits {
        let millis = |since: u64| Duration::from_millis(self.now().saturating_sub(since));
        Waits { phase: self.phase(), since: millis(self.waits.load(Relaxed) >> 3) }
    }

    fn is_stuck_for(&self) -> Option<Duration> {
        let since = self.stuck.load(Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(since)))
    }

    /// The headers have come.
    pub(super) fn begin(&self, has_body: bool) {
        self.enter(if has_body { Phase::Body } else { Phase::Work });
    }

    /// The body has come, or is not waited for any more.
    pub(in crate::api) fn work(&self) {
        self.held.store(0, Relaxed);
        self.enter(Phase::Work);
    }

    /// So many bytes of the body have come.
    pub(in crate::api) fn hold(&self, bytes: usize) {
        self.held.store(bytes, Relaxed);
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// The reply is ready.
    pub(super) fn end(&self) {
        self.enter(Phase::Idle);
    }

    /// What serves it.
    pub(super) fn set_task(&self, task: AbortHandle) {
        // Set once, right after it was made.
        let _ = self.task.set(task);
    }

    /// Ends it, whatever it does.
    pub(super) fn cut(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// From now on it ends as soon as nothing is under way on it.
    pub(super) fn close(&self) {
        self.closing.store(true, Relaxed);
        self.waker.wake();
    }

    /// True when the server closes and nothing is under way here. Called after a poll of the connection, so that a request
    /// that had already arrived has been seen.
    pub(super) fn may_end(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.closing.load(Relaxed) && self.phase() == Phase::Idle && self.stuck.load(Relaxed) == 0
    }

    /// True when the client has kept it waiting for longer than it may.
    pub(super) fn is_overdue(&self) -> bool {
        if self.is_stuck_for().is_some_and(|stuck| stuck > self.patience) {
            return true;
        }
        let closing = self.closing.load(Relaxed);
        let waits = self.waits();
        let limit = match waits.phase {
            Phase::Head if closing => self.patience.min(CLOSING),
            Phase::Head => self.patience,
            Phase::Body => self.patience + ANSWERED,
            Phase::Work => return false,
            Phase::Idle => IDLE,
        };
        waits.since > limit
    }

    /// How long the client has kept it waiting; nothing while the server works.
    pub(super) fn kept_waiting(&self) -> Option<Duration> {
        let waits = self.waits();
        self.is_stuck_for().or((waits.phase != Phase::Work).then_some(waits.since))
    }

    /// Bytes came in.
    fn has_read(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// Bytes went out.
    fn has_written(&self) {
        if self.stuck.load(Relaxed) != 0 {
            self.stuck.store(0, Relaxed);
        }
        // A long reply is no idleness.
        if self.phase() == Phase::Idle {
            self.enter(Phase::Idle);
        }
    }

    fn cannot_write(&self) {
        if self.stuck.load(Relaxed) == 0 {
            self.stuck.store(self.now() + 1, Relaxed);
        }
    }

    fn write_seen<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Ready(_) => self.has_written(),
            Poll::Pending => self.cannot_write(),
        }
        result
    }
}

/// A stream that tells its [`Connection`] what comes and goes.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) connection: Arc<Connection>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.has_read();
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.connection.write_seen(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.connection.write_seen(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
