//! LISTEN, on a connection of its own, polled by hand: a pool drops notifications.

use std::task::{Context, Poll};

use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls};

use super::{Store, StoreError, connection, statement::SEND_NOTIFY};

type Messages = Box<
    dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> + Send,
>;

/// A connection that listens. Notifications are hints: after every (re)connect the caller scans once.
pub struct Listener {
    // Dropping the client would end the connection.
    _client: Client,
    messages: Messages,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

impl Listener {
    /// The payload of the next notification. An error is final: connect again.
    pub async fn next(&mut self) -> Result<String, StoreError> {
        loop {
            match poll_fn(|cx| (self.messages)(cx)).await {
                Some(Ok(AsyncMessage::Notification(n))) => return Ok(n.payload().to_owned()),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(StoreError::Unreachable(Box::new(e))),
                None => return Err(StoreError::Unreachable("the connection was closed".into())),
            }
        }
    }
}

fn messages<S, T>(mut connection: Connection<S, T>) -> Messages
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::new(move |cx: &mut Context<'_>| connection.poll_message(cx))
}

impl Store {
    /// Connects past a pooler and listens.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let config = self.listen_config();
        let unreachable = |e: tokio_postgres::Error| StoreError::Unreachable(Box::new(e));
        let (client, mut messages) = match connection::tls(config)? {
            connection::Tls::Off => {
                let (client, connection) = config.connect(NoTls).await.map_err(unreachable)?;
                (client, messages(connection))
            }
            connection::Tls::Verified(tls) => {
                let (client, connection) = config.connect(tls).await.map_err(unreachable)?;
                (client, messages(connection))
            }
        };
        // LISTEN completes only while the connection is driven. A notification that arrives meanwhile is no loss: the
        // caller scans after connecting.
        {
            let mut listening = std::pin::pin!(client.batch_execute("listen fleet_wake"));
            loop {
                tokio::select! {
                    result = &mut listening => {
                        result.map_err(|source| StoreError::Statement { statement: "listen", source })?;
                        break;
                    }
                    message = poll_fn(|cx| messages(cx)) => match message {
                        Some(Ok(_)) => {}
                        Some(Err(e)) => return Err(unreachable(e)),
                        None => return Err(StoreError::Unreachable("the connection was closed".into())),
                    },
                }
            }
        }
        Ok(Listener { _client: client, messages })
    }

    /// Wakes the other replicas.
    pub async fn notify(&self, payload: &str) -> Result<(), StoreError> {
        let client = self.client().await?;
        SEND_NOTIFY.rows(&client, &[&payload]).await?;
        Ok(())
    }
}
