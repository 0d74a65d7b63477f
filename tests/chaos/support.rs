//! What the integration tests stand on, as far as it serves here.

#[path = "../it/support/history.rs"]
pub(crate) mod history;
#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../it/support/program.rs"]
mod program;
#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../it/support/sshd.rs"]
mod sshd;
#[path = "../it/support/wait.rs"]
mod wait;

pub(crate) use program::agent_fleet;
pub(crate) use sshd::{Sshd, free_port};
pub(crate) use wait::eventually;
