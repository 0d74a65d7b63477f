//! The HTTP edge: accepts connections, serves each, and watches over all of them.
//!
//! A slow or stuck client costs its connection, for as long as `server.client_timeout`, and nothing else: its request is
//! counted only once it has come in whole. One watch looks over all connections every so often, so that no request sets a
//! timer. When as many are open as may be, the one that has kept the server waiting longest makes room for the next; when
//! none has, the newcomer is told to come back, unless it is a webhook, which no forge sends twice, or a health check.
//!
//! HTTP/1.1 only: over HTTP/2 one connection could hold any number of requests, and what is in front of a replica
//! speaks HTTP/1.1 to it.

mod connection;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request,
    body::{Body as _, Incoming},
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tower_service::Service;
use warp::reply::{Reply, Response};

pub(super) use self::connection::Connection;
use self::connection::Watched;
use super::{error::ApiError, limits::Limits, routes};
use crate::{coordinator::Replica, shutdown::Shutdown};

/// Headers of a request, in bytes, at most.
const MAX_HEAD: usize = 64 << 10;
/// Files that a replica opens besides its connections: the database's, hosts', logs.
const OTHER_FILES: u64 = 1_024;
/// Who has kept the server waiting for less than this makes no room for others.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// Bytes of bodies that have not come in whole, in all, at most; what comes in between two looks of the watch aside.
const MAX_HELD: usize = 256 << 20;
/// Connections beyond the limit, for webhooks and health checks.
const HEADROOM: usize = 256;

/// All connections of a replica.
#[derive(Debug)]
struct Edge {
    max_connections: usize,
    client_timeout: Duration,
    limits: Arc<Limits>,
    shutdown: Shutdown,
    open: Mutex<(u64, HashMap<u64, Arc<Connection>>)>,
    /// One has ended.
    ended: Notify,
    /// The refusal of a newcomer has been logged.
    is_full: AtomicBool,
}

/// A place among the open connections.
#[derive(Debug)]
struct OpenConnection {
    edge: Arc<Edge>,
    number: u64,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.edge.open().1.remove(&self.number);
        self.edge.ended.notify_one();
    }
}

/// Binds the address that is configured.
pub async fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves until the replica is told to stop; then the listener closes and what is under way has `limit` to end.
pub async fn serve(replica: Arc<Replica>, listener: TcpListener, limit: Duration) {
    let edge = Arc::new(Edge::new(&replica));
    let routes = warp::service(routes(&replica));
    let mut watch = pin!(edge.watch());
    tokio::select! {
        () = edge.accept(&listener, &routes) => {}
        () = &mut watch => {}
        () = replica.shutdown.triggered() => {}
    }
    // Who is connected already, and not yet accepted, would be reset.
    while let Poll::Ready(Ok((stream, _))) = poll_once(|cx| listener.poll_accept(cx)).await {
        edge.begin(stream, &routes);
    }
    drop(listener);
    let closed = async {
        tokio::select! {
            () = edge.close() => {}
            () = &mut watch => {}
        }
    };
    if tokio::time::timeout(limit, closed).await.is_err() {
        tracing::warn!("connections were still open when the server stopped");
        edge.open().1.values().for_each(|connection| connection.cut());
    }
}

async fn poll_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll_fn(|cx| Poll::Ready(poll(cx))).await
}

/// What answers requests: warp's routes.
trait Routes:
    Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<R> Routes for R where
    R: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

impl Edge {
    fn new(replica: &Replica) -> Self {
        let server = &replica.config.server;
        Self {
            max_connections: allow_files(server.max_connections),
            client_timeout: server.client_timeout,
            limits: Arc::new(Limits::new(server.max_requests, server.max_requests_per_agent)),
            shutdown: replica.shutdown.clone(),
            open: Mutex::default(),
            ended: Notify::new(),
            is_full: AtomicBool::new(false),
        }
    }

    fn open(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Connection>>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.open().1.len()
    }

    /// Takes connections for ever.
    async fn accept(self: &Arc<Self>, listener: &TcpListener, routes: &impl Routes) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.begin(stream, routes),
                // That one has gone; the next may be well.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::error!(%error, "no connection can be accepted; trying again");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            while self.count() >= self.max_connections + HEADROOM {
                self.make_room();
                self.ended.notified().await;
            }
        }
    }

    /// Serves one connection in the background.
    fn begin(self: &Arc<Self>, stream: TcpStream, routes: &impl Routes) {
        let is_over = self.count() >= self.max_connections && !self.make_room();
        if is_over && !self.is_full.swap(true, Relaxed) {
            tracing::warn!(
                connections = self.max_connections,
                "as many connections are open as may be (server.max_connections); newcomers are told to come back"
            );
        }
        let connection = Arc::new(Connection::new(&self.limits, self.client_timeout));
        let place = {
            let mut open = self.open();
            open.0 += 1;
            let number = open.0;
            open.1.insert(number, Arc::clone(&connection));
            OpenConnection { edge: Arc::clone(self), number }
        };
        let routes = routes.clone();
        let own = Arc::clone(&connection);
        let task = tokio::spawn(async move {
            let shutdown = place.edge.shutdown.clone();
            serve_connection(stream, own, routes, is_over, shutdown).await;
            drop(place);
        });
        connection.set_task(task.abort_handle());
    }

    /// Ends the connection whose client has kept the server waiting longest. False when none has.
    fn make_room(&self) -> bool {
        let mut open = self.open();
        let longest = open
            .1
            .iter()
            .filter_map(|(number, connection)| Some((connection.kept_waiting()?, *number)))
            .filter(|(waiting, _)| *waiting >= MIN_WAIT)
            .max();
        // Taken out at once, so that the next one finds another.
        let found = longest.and_then(|(_, number)| open.1.remove(&number));
        drop(open);
        found.as_ref().inspect(|connection| connection.cut()).is_some()
    }

    /// Ends, for ever, what keeps the server waiting for too long.
    async fn watch(&self) {
        let mut tick = tokio::time::interval((self.client_timeout / 4).min(Duration::from_secs(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let open = self.open();
            open.1.values().filter(|c| c.is_overdue()).for_each(|c| c.cut());
            let_go(open.1.values());
            if open.1.len() < self.max_connections {
                self.is_full.store(false, Relaxed);
            }
        }
    }

    /// Lets every connection end with what is under way on it, and waits until all have.
    async fn close(&self) {
        self.open().1.values().for_each(|connection| connection.close());
        while self.count() > 0 {
            self.ended.notified().await;
        }
    }
}

/// Ends clients that are slow with large bodies, those that have been at it longest, until the bodies fit.
fn let_go<'a>(connections: impl Iterator<Item = &'a Arc<Connection>>) {
    let mut holding: Vec<_> = connections
        .filter(|connection| connection.held() > 0)
        .filter_map(|connection| Some((connection.kept_waiting()?, connection)))
        .collect();
    let mut held: usize = holding.iter().map(|(_, connection)| connection.held()).sum();
    if held <= MAX_HELD {
        return;
    }
    holding.sort_by_key(|(waiting, _)| *waiting);
    while held > MAX_HELD
        && let Some((_, connection)) = holding.pop()
    {
        held -= connection.held().min(held);
        connection.cut();
    }
}

async fn serve_connection(
    stream: TcpStream,
    connection: Arc<Connection>,
    routes: impl Routes,
    is_over: bool,
    shutdown: Shutdown,
) {
    // Replies are short and awaited. A socket that refuses has gone.
    let _ = stream.set_nodelay(true);
    let own = Arc::clone(&connection);
    let service = service_fn(move |mut request: Request<Incoming>| {
        own.begin(!request.body().is_end_stream());
        let is_refused = is_over && !is_exempt(request.uri().path());
        let answering = (!is_refused).then(|| {
            request.extensions_mut().insert(Arc::clone(&own));
            routes.clone().call(request)
        });
        let (own, shutdown) = (Arc::clone(&own), shutdown.clone());
        async move {
            let mut response = match answering {
                Some(answering) => answering.await?,
                None => ApiError::overloaded().into_response(),
            };
            own.end();
            if is_refused || shutdown.is_draining() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(Watched { stream, connection: Arc::clone(&connection) });
    let mut http = pin!(http1::Builder::new().max_buf_size(MAX_HEAD).serve_connection(io, service));
    poll_fn(|cx| match http.as_mut().poll(cx) {
        // How it ended is the client's affair.
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending if connection.may_end(cx) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    })
    .await;
}

/// What is served beyond the limit: a forge does not deliver twice, and a balancer should see that the replica lives.
fn is_exempt(path: &str) -> bool {
    matches!(path, "/api/v1/webhooks/forgejo" | "/healthz" | "/readyz")
}

/// Lets this process open as many files as so many connections need. Returns how many connections that are.
fn allow_files(connections: usize) -> usize {
    let others = OTHER_FILES + HEADROOM as u64;
    let wanted = others + connections as u64;
    let allowed = getrlimit(Resource::Nofile);
    let files = allowed.maximum.map_or(wanted, |most| most.min(wanted));
    let has = allowed.current.unwrap_or(u64::MAX);
    let files = if has >= files {
        has
    } else {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: allowed.maximum })
        {
            Ok(()) => files,
            Err(_) => has,
        }
    };
    if files >= wanted {
        return connections;
    }
    let fits = files.saturating_sub(others).max(files / 2);
    tracing::warn!(
        files,
        connections = fits,
        "this process may open fewer files than server.max_connections needs; raise the limit (ulimit -n, LimitNOFILE=)"
    );
    usize::try_from(fits).unwrap_or(connections)
}
