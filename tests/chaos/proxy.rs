//! What stands between processes: a balancer in front of the replicas, and lines to the database on which listeners can
//! be cut off without anybody noticing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};

/// Between two looks at a replica.
const CHECK: Duration = Duration::from_millis(300);
/// How long a look may take.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// A replica that does not answer so many looks in a row is dead. One that refuses them is dead at once.
const MISSES: u32 = 2;

/// How a replica answers the balancer's looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    /// Not at all; its connections are cut.
    Dead,
    /// It lives, and wants no requests.
    Alive,
    /// It wants requests.
    Ready,
}

/// A TCP load balancer with health checks, as operators put in front of replicas.
pub(crate) struct Balancer {
    pub(crate) port: u16,
}

impl Balancer {
    /// In front of these ports.
    pub(crate) async fn start(ports: &[u16]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let backends: Arc<Vec<(u16, watch::Sender<Health>)>> =
            Arc::new(ports.iter().map(|p| (*p, watch::Sender::new(Health::Dead))).collect());
        for at in 0..ports.len() {
            tokio::spawn(look(Arc::clone(&backends), at));
        }
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(balance(client, Arc::clone(&backends)));
            }
        });
        Ok(Self { port })
    }

    /// Where clients go.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

async fn look(backends: Arc<Vec<(u16, watch::Sender<Health>)>>, at: usize) {
    let (port, health) = &backends[at];
    let http = reqwest::Client::builder().timeout(CHECK_LIMIT).no_proxy().build().unwrap();
    let mut missed = 0;
    loop {
        let reply = http.get(format!("http://127.0.0.1:{port}/readyz")).send().await;
        missed = if reply.as_ref().is_err_and(reqwest::Error::is_timeout) { missed + 1 } else { 0 };
        let found = match reply {
            Ok(reply) if reply.status().is_success() => Health::Ready,
            Ok(_) => Health::Alive,
            Err(_) if (1..MISSES).contains(&missed) => Health::Alive,
            Err(_) => Health::Dead,
        };
        health.send_if_modified(|now| std::mem::replace(now, found) != found);
        tokio::time::sleep(CHECK).await;
    }
}

/// Any ready replica, else any that lives.
async fn balance(mut client: TcpStream, backends: Arc<Vec<(u16, watch::Sender<Health>)>>) {
    let best = backends.iter().map(|(_, health)| *health.borrow()).max();
    let fit: Vec<_> = backends.iter().filter(|(_, h)| Some(*h.borrow()) == best).collect();
    let Some((port, health)) = fit.get(rand::random_range(0..fit.len().max(1))) else { return };
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", *port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut health = health.subscribe();
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = health.wait_for(|health| *health == Health::Dead) => {}
    }
}

/// What makes a connection one that listens, as it stands on the wire.
const LISTEN: &[u8] = b"listen fleet_wake";

/// A line from a replica to a server. What its listener hears and says can be cut off: nothing passes any more, and
/// nothing is closed.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) port: u16,
    heard: watch::Sender<bool>,
}

impl Line {
    /// To this port.
    pub(crate) async fn start(to: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let line = Self { port: listener.local_addr()?.port(), heard: watch::Sender::new(true) };
        let heard = line.heard.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, to, heard.subscribe()));
            }
        });
        Ok(line)
    }

    /// Cuts the listener off, or mends it.
    pub(crate) fn set_heard(&self, heard: bool) {
        self.heard.send_replace(heard);
    }
}

async fn carry(client: TcpStream, to: u16, heard: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let listens = AtomicBool::new(false);
    tokio::select! {
        () = pass(from_client, to_server, &listens, heard.clone()) => {}
        () = pass(from_server, to_client, &listens, heard) => {}
    }
}

async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    listens: &AtomicBool,
    mut heard: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        let text = &buffer[..count];
        if text.windows(LISTEN.len()).any(|part| part == LISTEN) {
            listens.store(true, Ordering::Relaxed);
        }
        // Also the end of the stream waits, as it would on a cut wire.
        let cut = listens.load(Ordering::Relaxed) && heard.wait_for(|heard| *heard).await.is_err();
        if cut || count == 0 || to.write_all(text).await.is_err() {
            return;
        }
    }
}
