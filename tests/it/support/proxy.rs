//! A way to a server that can go dead without a word, as a cable that is cut.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixStream},
};

/// Takes connections on a port of 127.0.0.1 and hands them on to a Unix socket.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// Connections of earlier generations are dead: open, and silent.
    generation: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let generation = Arc::new(AtomicU64::new(0));
        let now = Arc::clone(&generation);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (socket, now) = (socket.clone(), Arc::clone(&now));
                tokio::spawn(async move {
                    let Ok(server) = UnixStream::connect(&socket).await else { return };
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    let own = now.load(SeqCst);
                    tokio::join!(
                        carry(client_in, server_out, own, &now),
                        carry(server_in, client_out, own, &now)
                    );
                });
            }
        });
        Self { port, generation }
    }

    /// All connections of this moment go dead; new ones are well.
    pub(crate) fn cut(&self) {
        self.generation.fetch_add(1, SeqCst);
    }
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    own: u64,
    now: &AtomicU64,
) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let count = match from.read(&mut bytes).await {
            Ok(count @ 1..) => count,
            _ if now.load(SeqCst) == own => return,
            // Not even its end is heard.
            _ => std::future::pending().await,
        };
        if now.load(SeqCst) == own && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
