//! The only SQL. One named and timed function per file in `sql/`; nothing else imports `tokio_postgres`.
//!
//! Reads and writes answer *why* they did nothing: missing, not yours any more, wrong status. Every write is safe to
//! repeat, since the outcome of a commit can be unknown. One lock order everywhere: lanes (by set), sessions, agents,
//! hosts (by id), issues (by key), tasks (by id), then appends.

mod agents;
mod claims;
mod connection;
mod counts;
mod create;
mod definitions;
mod error;
mod events;
mod heartbeats;
mod hosts;
mod issues;
mod lanes;
mod leases;
mod listener;
mod logs;
mod loops;
mod migrations;
mod operator;
mod retention;
mod rows;
mod runs;
mod sessions;
mod statement;
mod tasks;

pub(crate) use agents::token_digest;
pub use agents::{
    AgentFilter, AgentSession, Credential, RegisterRefused, Registered, Registration, TokenOwner,
};
pub use claims::{PullClaims, PushClaim, Waiter};
pub use connection::Store;
pub use counts::{TaskCount, WorkerCount};
pub use create::{Created, NewTask};
pub use definitions::{function_names, view_names};
pub use error::StoreError;
pub use events::EventPlace;
pub use heartbeats::{AgentBeat, Heard};
pub use hosts::{HostFilter, HostListing, HostProbe, ListedHost};
pub use issues::{DeliveryResult, IssueDefaults, IssueDelivery, IssueOutcome};
pub use leases::{EndLease, Ended, HeldLease, LeaseState, Outcome, Refusal};
pub use listener::Listener;
pub use logs::{Appended, LogChunk, LogPage};
pub use migrations::{Migrated, migration_names};
pub use operator::{OperatorRefusal, Target, TargetKind};
pub use retention::{OldPartitions, PurgeStep};
pub use runs::{KnownRun, NewRun, TakenOver};
pub use sessions::SilentSession;
pub use statement::{STATEMENTS, Statement};
pub use tasks::TaskFilter;
