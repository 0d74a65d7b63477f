//! Scripts over SSH, by the `openssh` crate: the system's `ssh` makes and authenticates each connection, and many
//! scripts share it over its control socket.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    executor::{ConnectFailure, ExecError, Executor, Output, Script},
    ssh_connection::{Connection, Target},
};
use crate::config;

/// sshd allows 10 sessions a connection unless told otherwise (`MaxSessions`); some room is left.
const PER_CONNECTION: usize = 8;
/// A Unix socket's path has at most 108 bytes with its NUL on Linux, 104 on macOS. What comes behind the control directory:
/// `/.ssh-connectionXXXXXX/master` and the 17 bytes that ssh adds while it binds.
const MAX_CONTROL_DIRECTORY: usize = 104 - 1 - 29 - 17;

/// Why a host cannot be reached by SSH as it is configured.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidTarget {
    /// ssh would read it as an option.
    #[error("the hostname or ssh_user of host `{0}` is empty or starts with `-`")]
    Hostname(String),
    /// The sockets in it would have too long a path.
    #[error("the control directory {} is too long: at most {MAX_CONTROL_DIRECTORY} bytes", .0.display())]
    ControlDirectory(PathBuf),
}

/// Runs scripts on one host. Connects when first needed, anew when a connection broke, and once more when all
/// connections are busy.
#[derive(Debug)]
pub struct SshExecutor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    target: Target,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// Held while connecting: one at a time, which also spares sshd's `MaxStartups`.
    connecting: tokio::sync::Mutex<()>,
}

/// A connection and the right to run one script on it.
type Slot = (Arc<Connection>, OwnedSemaphorePermit);

impl SshExecutor {
    /// Connects to nothing yet. `control_directory` must exist, be private, short, and used by this process alone.
    pub fn new(host: &config::Host, control_directory: &Path) -> Result<Self, InvalidTarget> {
        let option_like = |text: &str| text.is_empty() || text.starts_with('-');
        if option_like(&host.hostname) || host.ssh_user.as_deref().is_some_and(option_like) {
            return Err(InvalidTarget::Hostname(host.host_id.clone()));
        }
        if control_directory.as_os_str().len() > MAX_CONTROL_DIRECTORY {
            return Err(InvalidTarget::ControlDirectory(control_directory.to_owned()));
        }
        let target = Target {
            hostname: host.hostname.clone(),
            user: host.ssh_user.clone(),
            port: host.ssh_port,
            key: host.ssh_key_path.clone(),
            known_hosts: host.known_hosts_path.clone(),
            control_directory: control_directory.to_owned(),
        };
        let inner = Inner {
            target,
            connections: Mutex::default(),
            connecting: tokio::sync::Mutex::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Closes every connection, at shutdown. What still runs on one keeps it until it is done.
    pub async fn close(&self) {
        for connection in self.inner.take_all() {
            connection.close().await;
        }
    }

    /// Paths of the control sockets of the open connections.
    pub fn control_sockets(&self) -> Vec<PathBuf> {
        self.inner.list().iter().map(|c| c.control_socket().to_owned()).collect()
    }
}

impl Inner {
    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Connection>>> {
        // Nothing panics while it is held.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_all(&self) -> Vec<Arc<Connection>> {
        std::mem::take(&mut *self.list())
    }

    /// A slot on a connection that answers, if any is free.
    async fn free_slot(&self) -> Option<Slot> {
        // Bounded: each turn returns or drops one connection.
        loop {
            let (connection, permit) = {
                let list = self.list();
                list.iter().find_map(|c| Some((c.clone(), c.try_slot()?)))?
            };
            if connection.is_alive().await {
                return Some((connection, permit));
            }
            self.discard(&connection);
        }
    }

    /// Never uses a connection again.
    fn discard(&self, broken: &Arc<Connection>) {
        self.list().retain(|c| !Arc::ptr_eq(c, broken));
        let broken = broken.clone();
        tokio::spawn(async move { broken.close().await });
    }

    /// A slot, on a new connection if need be.
    async fn slot(self: &Arc<Self>) -> Result<Slot, ExecError> {
        if let Some(slot) = self.free_slot().await {
            return Ok(slot);
        }
        let inner = self.clone();
        // In a task of its own, because a caller that goes away must not drop the connect: its `ssh` would stay behind
        // without anybody who knows it. Bounded by ConnectTimeout.
        let connecting = tokio::spawn(async move {
            let _turn = inner.connecting.lock().await;
            if let Some(slot) = inner.free_slot().await {
                return Ok(slot);
            }
            let connection = Arc::new(Connection::open(&inner.target, PER_CONNECTION).await?);
            let permit = connection.try_slot();
            inner.list().push(connection.clone());
            permit.map(|permit| (connection, permit)).ok_or_else(|| ExecError::Connect {
                target: inner.target.to_string(),
                reason: ConnectFailure::Other,
                detail: "the new connection was closed at once".to_owned(),
            })
        });
        connecting.await.unwrap_or_else(|stopped| {
            Err(ExecError::Connect {
                target: self.target.to_string(),
                reason: ConnectFailure::Other,
                detail: stopped.to_string(),
            })
        })
    }

    async fn exec(self: Arc<Self>, script: Script) -> Result<Output, ExecError> {
        let limit = script.time_limit;
        let target = || self.target.to_string();
        loop {
            let (connection, _slot) = self.slot().await?;
            match tokio::time::timeout(limit, connection.run(&script)).await {
                Ok(Ok(Some(output))) => return Ok(output),
                // Closed between the look whether it answers and the script, by a probe that connects anew.
                Ok(Ok(None)) => {}
                Ok(Err(source)) => {
                    self.discard(&connection);
                    return Err(ExecError::Lost { target: target(), source: Box::new(source) });
                }
                Err(_) => {
                    // Perhaps the network is gone and ssh has not noticed: a new connection will tell.
                    self.discard(&connection);
                    return Err(ExecError::TimedOut { target: target(), limit });
                }
            }
        }
    }
}

impl Executor for SshExecutor {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        Box::pin(self.inner.clone().exec(script))
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.close())
    }
}
