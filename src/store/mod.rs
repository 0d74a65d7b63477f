//! The only SQL. One named and timed function per file in `sql/`; nothing else imports `tokio_postgres`.
//!
//! Reads and writes answer *why* they did nothing: missing, not yours any more, wrong status. Every write is safe to
//! repeat, since the outcome of a commit can be unknown. One lock order everywhere: an agent's id, lanes (by
//! set), sessions, agents, hosts (by id), issues (by key), tasks (by id), then appends.

mod agents;
mod asking;
mod at_once;
mod claims;
mod client;
mod connection;
mod counts;
mod create;
mod crowd;
mod definitions;
mod deliveries;
mod ending;
mod error;
mod events;
mod examine;
mod heartbeats;
mod hosts;
mod insert;
mod issues;
mod journal;
mod lanes;
mod leases;
mod ledger;
mod listener;
mod logs;
mod loops;
mod migrations;
mod new_task;
mod next;
mod operator;
mod ready;
mod retention;
mod rows;
mod runs;
mod servers;
mod sessions;
mod statement;
mod taking;
mod tasks;
mod traced;
mod vacuum;
mod work;

pub(crate) use agents::token_digest;
pub use agents::{
    AgentFilter, AgentSession, CallerKey, Credential, RegisterRefused, Registered, Registration,
    TokenOwner,
};
pub use claims::PushClaim;
pub use connection::{OLDEST, Store};
pub use counts::{TaskCount, WorkerCount};
pub use create::{Created, Creation};
pub use definitions::{function_names, view_names};
pub use deliveries::{
    About, Delivery, DeliveryOutcome, DeliveryResult, IssueDefaults, TakenTogether,
};
pub use error::StoreError;
pub use events::EventPlace;
pub use examine::{Examination, notify_queue_problem};
pub use heartbeats::{AgentBeat, Heard, Touched};
pub use hosts::{HostFilter, HostListing, HostProbe, ListedHost};
pub use insert::Tell;
pub use leases::{EndLease, Ended, HeldLease, LeaseState, Outcome, Refusal, Start, Started};
pub use listener::Listener;
pub use logs::{Appended, LogChunk, LogPage};
pub(crate) use loops::BATCH;
pub use loops::{Due, Silence, VacuumBlocker};
pub use migrations::{Migrated, migration_names};
pub use new_task::{NewRequest, NewTask};
pub use operator::{OperatorRefusal, Target, TargetKind};
pub use ready::ReadyPlace;
pub use retention::{OldPartitions, PurgeStep};
pub use runs::{KnownRun, NewRun, TakenOver};
pub(crate) use sessions::BOOTED_AGAIN;
pub use sessions::{Beaten, SilentSession, Standing};
pub use statement::{STATEMENTS, Statement};
pub use tasks::TaskFilter;
pub use vacuum::Vacuumed;
pub use work::{PullClaims, Waiter, Worked};
