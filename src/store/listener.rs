//! LISTEN, on a connection of its own, polled by hand: a pool drops notifications.

use std::{collections::VecDeque, time::Duration};

use futures_util::future::poll_fn;
use tokio::time::Instant;
use tokio_postgres::{AsyncMessage, Client};

use super::{
    ReadyPlace, Store, StoreError,
    servers::Messages,
    statement::{AWAIT_CREATIONS, SEND_NOTIFY},
};

/// Said again, it changes nothing, so it also serves as a question.
const LISTEN: &str = "listen fleet_wake";
/// How often the server is asked whether it is still there: nothing is ever sent on a connection that only listens, so
/// one whose other side is gone would be silent for ever.
const ASK: Duration = Duration::from_secs(5);
/// What it says comes within this.
const ANSWER: Duration = Duration::from_secs(3);

/// A connection that listens. Notifications are hints: after every (re)connect the caller scans once.
pub struct Listener {
    client: Client,
    messages: Messages,
    heard: VecDeque<String>,
    /// When the server is next asked.
    ask: Instant,
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
            if let Some(payload) = self.heard.pop_front() {
                return Ok(payload);
            }
            let ask = self.ask;
            tokio::select! {
                message = poll_fn(|cx| (self.messages)(cx)) => self.take(message)?,
                () = tokio::time::sleep_until(ask) => {
                    self.run("listen", LISTEN).await?;
                    self.ask = Instant::now() + ASK;
                }
            }
        }
    }

    fn take(
        &mut self,
        message: Option<Result<AsyncMessage, tokio_postgres::Error>>,
    ) -> Result<(), StoreError> {
        match message {
            Some(Ok(AsyncMessage::Notification(n))) => self.heard.push_back(n.payload().to_owned()),
            Some(Ok(_)) => {}
            Some(Err(e)) => return Err(StoreError::Unreachable(Box::new(e))),
            None => return Err(StoreError::Unreachable("the connection was closed".into())),
        }
        Ok(())
    }

    /// Runs a statement; it completes only while the connection is polled.
    async fn run(&mut self, statement: &'static str, sql: &str) -> Result<(), StoreError> {
        let deadline = Instant::now() + ANSWER;
        let mut heard = Vec::new();
        let done = {
            let Self { client, messages, .. } = self;
            let mut running = std::pin::pin!(client.batch_execute(sql));
            loop {
                tokio::select! {
                    done = &mut running => break done,
                    message = poll_fn(|cx| messages(cx)) => {
                        let is_end = !matches!(message, Some(Ok(_)));
                        heard.push(message);
                        if is_end {
                            break Ok(());
                        }
                    }
                    () = tokio::time::sleep_until(deadline) => return Err(StoreError::silent(ANSWER)),
                }
            }
        };
        for message in heard {
            self.take(message)?;
        }
        done.map_err(|source| StoreError::Statement { statement, source })
    }
}

impl Store {
    /// Connects past a pooler and listens.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let (client, messages) = self.direct().connect_in_time().await?;
        let ask = Instant::now() + ASK;
        let mut listener = Listener { client, messages, heard: VecDeque::new(), ask };
        listener.run("listen", LISTEN).await?;
        Ok(listener)
    }

    /// Waits until these tasks, of which another replica has told while it commits, are there, or never will be: 5 s at most
    /// (`lock_timeout`).
    pub async fn await_creations(&self, places: &[ReadyPlace]) -> Result<(), StoreError> {
        let seqs: Vec<i64> = places.iter().map(|place| place.seq).collect();
        self.read_one(&AWAIT_CREATIONS, &[&seqs]).await?;
        Ok(())
    }

    /// Wakes the other replicas.
    pub async fn notify(&self, payload: &str) -> Result<(), StoreError> {
        let client = self.client().await?;
        SEND_NOTIFY.rows(&client, &[&payload]).await?;
        Ok(())
    }
}
