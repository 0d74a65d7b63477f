//! What the tests stand on: real servers, made for the run.

pub(crate) mod api;
pub(crate) mod db;
pub(crate) mod faults;
pub(crate) mod fleet;
pub(crate) mod forge;
pub(crate) mod history;
pub(crate) mod host;
pub(crate) mod node;
#[cfg(feature = "otel")]
pub(crate) mod otlp;
pub(crate) mod program;
pub(crate) mod property;
pub(crate) mod proxy;
pub(crate) mod sshd;
pub(crate) mod standby;
mod wait;

pub(crate) use wait::eventually;
